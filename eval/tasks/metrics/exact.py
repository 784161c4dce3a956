"""Exact match: the bundled tasks' rule ("exact"), and the official one of GQA ("exact_match")."""

from __future__ import annotations

import string

from vtc.eval.tasks.questions import Question

from .base import Metric, register
from .text_match import score, understood

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def bare(text: str) -> str:
    """Lower case, without ASCII punctuation and outer spaces."""
    return text.strip().lower().translate(_PUNCTUATION).strip()


@register
class Exact(Metric):
    """Normalised exact match that reads yes/no and numbers out of a sentence, see ``text_match``."""

    name = "exact"

    def parse(self, question: Question, prediction: str) -> str:
        """The yes or no, the number, or the first line, as the answer asks for it."""
        return understood(prediction, question.answer)

    def score(self, question: Question, prediction: str) -> float:
        """1 if any accepted answer is met."""
        return max(score(prediction, reference) for reference in question.references)


@register
class ExactMatch(Metric):
    """The whole prediction is an accepted answer, case, punctuation and outer spaces aside: GQA's accuracy."""

    name = "exact_match"

    def parse(self, question: Question, prediction: str) -> str:
        """The prediction without case and punctuation."""
        return bare(prediction)

    def score(self, question: Question, prediction: str) -> float:
        """1 if it is an accepted answer."""
        return float(bare(prediction) in {bare(reference) for reference in question.references})

    def check(self, question: Question) -> None:
        """The answer must hold more than punctuation."""
        if not bare(question.answer):
            raise ValueError(f"the answer {question.answer!r} is empty without its punctuation")
