"""POPE: accuracy, precision, recall and F1 of "yes", and how often the model says yes."""

from __future__ import annotations

import re

from vtc.eval.tasks.questions import Question

from .base import Metric, Rows, by_category, register, share


def yes_no(text: str) -> str:
    """The answer of a sentence: "no" if its first one holds no or not, else "yes" if it holds yes, else empty."""
    sentence = re.split(r"[.\n]", text.strip(), maxsplit=1)[0].lower()
    words = set(re.findall(r"[a-z]+", sentence))
    if words & {"no", "not"}:
        return "no"
    return "yes" if "yes" in words else ""


def pope_figures(rows: Rows) -> dict[str, float]:
    """The figures of some rows; an answer that is neither yes nor no is wrong and neither."""
    says = [row["parsed"] == "yes" for row in rows]
    is_yes = [row["answer"].strip().lower() == "yes" for row in rows]
    hits = sum(a and b for a, b in zip(says, is_yes, strict=True))
    precision = hits / sum(says) if any(says) else 0.0
    recall = hits / sum(is_yes) if any(is_yes) else 0.0
    return {
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "accuracy": share(rows, lambda row: row["score"] == 1),
        "precision": precision,
        "recall": recall,
        "yes_ratio": sum(says) / len(rows) if rows else 0.0,
    }


@register
class POPE(Metric):
    """POPE's rule for sentences, but a prediction with neither word in it is not taken for a yes.

    It is wrong and a miss in the recall; lmms-eval takes the bare word alone, and leaves all else out of the recall.

    ``category_average`` is the mean F1 of the random, popular and adversarial questions, which papers quote as well.
    """

    name = "pope"
    main = "f1"

    def parse(self, question: Question, prediction: str) -> str:
        """The yes or no that it says, or nothing."""
        return yes_no(prediction)

    def score(self, question: Question, prediction: str) -> float:
        """1 if it is the answer."""
        return float(yes_no(prediction) == question.answer.strip().lower())

    def check(self, question: Question) -> None:
        """The answer is yes or no."""
        if question.answer.strip().lower() not in ("yes", "no"):
            raise ValueError(f"the answer must be yes or no, it is {question.answer!r}")

    def aggregate(self, rows: Rows) -> dict[str, float]:
        """F1, accuracy, precision, recall and yes_ratio, over all and by category."""
        return by_category(rows, pope_figures) | {"unparsed": share(rows, lambda row: row["parsed"] == "")}
