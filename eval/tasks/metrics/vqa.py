"""VQA accuracy: the share of ten people who gave the answer, three being enough."""

from __future__ import annotations

from vtc.eval.tasks.questions import Question

from .base import Metric, register
from .vqa_text import textvqa_form, vqa_form

FEWEST = 4  # with fewer answers even the one that all gave would not score 1


@register
class VQA(Metric):
    """The official rule of VQAv2: the mean, over leaving each person out, of ``min(1, matches among the rest / 3)``.

    Predictions and answers are brought to one normal form first, also where all people agree (the official script
    leaves both as they are there; its evaluation server and the harnesses don't).
    """

    name = "vqa"
    form = staticmethod(vqa_form)

    def parse(self, question: Question, prediction: str) -> str:
        """The prediction's normal form."""
        return self.form(prediction)

    def score(self, question: Question, prediction: str) -> float:
        """The accuracy."""
        given, answers = self.form(prediction), [self.form(answer) for answer in question.references]
        matches = sum(answer == given for answer in answers)
        left_out = [min(1.0, (matches - (answer == given)) / 3) for answer in answers]
        return sum(left_out) / len(left_out)

    def check(self, question: Question) -> None:
        """There must be answers of several people."""
        if len(question.references) < FEWEST:
            raise ValueError(
                f"metric {self.name!r} needs the answers of people, usually 10, got {len(question.references)}; "
                "for a single answer use exact_match"
            )


@register
class TextVQA(VQA):
    """The same with the normal form of TextVQA's server: TextVQA and VizWiz."""

    name = "textvqa"
    form = staticmethod(textvqa_form)
