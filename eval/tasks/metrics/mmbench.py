"""MMBench: a question counts only if it is right in every order of its options (circular evaluation)."""

from __future__ import annotations

from vtc.eval.tasks.questions import Question

from .base import Rows, by_category, grouped, mean_score, register
from .choice import Choice


def circular(rows: Rows) -> dict[str, float]:
    """The share of groups with all answers right, and the plain accuracy of the single turns."""
    groups = grouped(rows, "group").values()
    whole = sum(all(row["score"] == 1 for row in turns) for turns in groups)
    return {"circular_accuracy": whole / len(groups) if groups else 0.0} | mean_score(rows)


@register
class MMBench(Choice):
    """Letter or option text per turn; the headline is over whole questions.

    The harnesses ask a language model about predictions without either; here they are wrong and counted in "unparsed".
    """

    name = "mmbench"
    main = "circular_accuracy"

    def check(self, question: Question) -> None:
        """The answer is a letter, and there is a group."""
        super().check(question)
        if not question.group:
            raise ValueError("circular evaluation needs a group: what the turns of one question share")

    def aggregate(self, rows: Rows) -> dict[str, float]:
        """circular_accuracy and accuracy, over all and by category."""
        return by_category(rows, circular) | {"unparsed": sum(row["parsed"] == "" for row in rows) / max(1, len(rows))}
