"""ANLS, the average normalised Levenshtein similarity of DocVQA."""

from __future__ import annotations

from vtc.eval.tasks.questions import Question

from .base import Metric, Rows, by_category, register, share

THRESHOLD = 0.5


def levenshtein(a: str, b: str) -> int:
    """Least number of inserted, deleted and replaced characters that make `b` of `a`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def similarity(prediction: str, answer: str) -> float:
    """1 minus their distance, case and spacing aside, by the longer one's length as it was written."""
    longest = max(len(prediction), len(answer))
    a, b = (" ".join(text.lower().split()) for text in (prediction, answer))
    return 1 - levenshtein(a, b) / longest if longest else 1.0


@register
class ANLS(Metric):
    """The best similarity to an accepted answer; below one half it counts as 0."""

    name = "anls"
    main = "anls"

    def parse(self, question: Question, prediction: str) -> str:
        """The prediction, spacing aside."""
        return " ".join(prediction.split())

    def score(self, question: Question, prediction: str) -> float:
        """The similarity."""
        best = max(similarity(prediction, reference) for reference in question.references)
        return best if best >= THRESHOLD else 0.0

    def aggregate(self, rows: Rows) -> dict[str, float]:
        """anls, and accuracy: the share of answers that are right to the letter."""
        return by_category(rows, _figures) | {"unparsed": share(rows, lambda row: row["parsed"] == "")}


def _figures(rows: Rows) -> dict[str, float]:
    mean = sum(row["score"] for row in rows) / len(rows) if rows else 0.0
    return {"anls": mean, "accuracy": share(rows, lambda row: row["score"] == 1)}
