"""Multiple choice: by letter, by letter or option text, and the stricter readings of single benchmarks."""

from __future__ import annotations

import re

from vtc.eval.tasks.questions import Question

from .base import Metric, register
from .exact import bare
from .letters import LETTERS, find_letter, find_option, letters_for


@register
class ChoiceLetter(Metric):
    """The letter that the prediction chooses: MMStar, VideoMME.

    Unlike lmms-eval's search, a capital within a word, the article "A" and two letters are no choice.
    """

    name = "choice_letter"

    def parse(self, question: Question, prediction: str) -> str:
        """The letter, empty if there is none."""
        return find_letter(prediction, letters_for(question.options))

    def score(self, question: Question, prediction: str) -> float:
        """1 if it is the answer's."""
        return float(self.parse(question, prediction).upper() == question.answer.strip().upper())

    def check(self, question: Question) -> None:
        """The answer is one of the options' letters."""
        letters = letters_for(question.options)
        if len(question.answer.strip()) != 1 or question.answer.strip().upper() not in letters:
            raise ValueError(f"the answer must be one of {', '.join(letters)}, it is {question.answer!r}")


@register
class Choice(ChoiceLetter):
    """The letter, or else the text of exactly one option: MVBench, and the sensible one for tasks of your own.

    MVBench's own script takes letters alone, and lmms-eval leaves empty answers out of its mean; here they are wrong.
    """

    name = "choice"

    def parse(self, question: Question, prediction: str) -> str:
        """The letter, empty if neither a letter nor one option's text is there."""
        letters = letters_for(question.options)
        return find_letter(prediction, letters) or find_option(prediction, question.options)


@register
class ScienceQA(ChoiceLetter):
    """LLaVA's reading, which all harnesses took over: the letter alone, or a capital with a period behind it."""

    name = "scienceqa"

    def parse(self, question: Question, prediction: str) -> str:
        """The letter."""
        text, letters = prediction.strip(), letters_for(question.options)
        if len(text) == 1 and text.upper() in letters:
            return text.upper()
        return text[0] if text[1:2] == "." and text[0] in letters else ""


@register
class AI2D(ChoiceLetter):
    """A capital with a period behind it, or the letter alone, punctuation and spaces aside."""

    name = "ai2d"

    def parse(self, question: Question, prediction: str) -> str:
        """The letter."""
        letters = letters_for(question.options)
        opening = re.match(rf"\s*([{letters}])\.", prediction)
        text = opening.group(1) if opening else bare(prediction).upper()
        return text if len(text) == 1 and text in letters else ""


@register
class Seed(ChoiceLetter):
    """The prediction's first character: SEED-Bench as the harnesses score generated answers."""

    name = "seed"

    def parse(self, question: Question, prediction: str) -> str:
        """The letter."""
        first = prediction.strip()[:1].upper()
        return first if first in tuple(letters_for(question.options)) else ""


@register
class RealWorldQA(ChoiceLetter):
    """A letter where the answer is one, else the whole answer, case and a final period aside."""

    name = "realworldqa"

    def parse(self, question: Question, prediction: str) -> str:
        """The letter, or the prediction in lower case."""
        if question.answer.strip().upper() in tuple(LETTERS):
            return find_letter(prediction, LETTERS)
        return prediction.lower().strip().rstrip(".")

    def check(self, question: Question) -> None:
        """Any answer will do, but an empty one."""
        if not question.answer.strip():
            raise ValueError("the answer is empty")
