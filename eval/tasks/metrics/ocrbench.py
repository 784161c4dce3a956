"""OCRBench: an accepted answer occurs in the prediction."""

from __future__ import annotations

from vtc.eval.tasks.questions import Question

from .base import Metric, Rows, register

FORMULAS = "Handwritten Mathematical Expression Recognition"
# the full-width forms of ASCII, and the ideographic space
_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


@register
class OCRBench(Metric):
    """Contained or not, case, line breaks and full-width letters aside; formulas without spaces but with their case.

    ``ocrbench_score`` is what the authors publish: the number of right answers, out of 1000 questions.
    """

    name = "ocrbench"
    printed = "ocrbench_score"

    def parse(self, question: Question, prediction: str) -> str:
        """The prediction in the form in which answers are looked for."""
        text = prediction.strip().replace("\n", " ")
        return text.replace(" ", "") if question.category == FORMULAS else text.translate(_NARROW).lower()

    def score(self, question: Question, prediction: str) -> float:
        """1 if it holds an accepted answer."""
        given = self.parse(question, prediction)
        return float(any(self.parse(question, reference) in given for reference in question.references))

    def check(self, question: Question) -> None:
        """No answer is empty: it would be found in everything."""
        if not all(self.parse(question, reference) for reference in question.references):
            raise ValueError("an accepted answer is empty")

    def aggregate(self, rows: Rows) -> dict[str, float]:
        """The accuracies, and the number of right answers."""
        return super().aggregate(rows) | {"ocrbench_score": float(sum(row["score"] for row in rows))}
