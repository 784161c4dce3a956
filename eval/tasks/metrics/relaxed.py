"""Relaxed accuracy of ChartQA: numbers within 5%, everything else to the letter."""

from __future__ import annotations

from vtc.eval.tasks.questions import Question

from .base import Metric, register

TOLERANCE = 0.05


def as_number(text: str) -> float | None:
    """A number as ChartQA's script reads it: percent as hundredths; with a unit or a comma it is none."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


@register
class Relaxed(Metric):
    """A number within 5% of the answer's, or the answer itself, case aside."""

    name = "relaxed"

    def parse(self, question: Question, prediction: str) -> str:
        """The prediction in lower case."""
        return prediction.strip().lower()

    def score(self, question: Question, prediction: str) -> float:
        """1 if it is close enough to an accepted answer."""
        return float(any(_right(prediction.strip(), reference.strip()) for reference in question.references))


def _right(given: str, wanted: str) -> bool:
    number, target = as_number(given), as_number(wanted)
    if number is not None and target:  # a relative error of zero is not defined
        return abs(number - target) / abs(target) <= TOLERANCE
    return given.lower() == wanted.lower()
