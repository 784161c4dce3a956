"""Numbers: the first one in the prediction, whatever its unit."""

from __future__ import annotations

import math
import re
import unicodedata

from vtc.eval.tasks.questions import Question

from .base import Metric, register
from .text_match import _NUMBERS as WORDS

_NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?\s*%?", re.IGNORECASE
)


def find_number(text: str) -> float | None:
    """The first number of a text: digits with thousands commas, percent as hundredths, or a word up to twelve.

    Examples
    --------
    >>> find_number("about $1,250.50"), find_number("12 %"), find_number("three of them"), find_number("none")
    (1250.5, 0.12, 3.0, None)
    """
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    text = re.sub(r"[A-Za-z]+", lambda m: WORDS.get(m.group().lower(), m.group()), text)
    found = _NUMBER.search(text)
    if found is None:
        return None
    digits = found.group().replace(",", "").rstrip()
    return float(digits[:-1]) / 100 if digits.endswith("%") else float(digits)


@register
class Numeric(Metric):
    """The prediction's first number equals an accepted one."""

    name = "numeric"

    def parse(self, question: Question, prediction: str) -> str:
        """That number."""
        number = find_number(prediction)
        return "" if number is None else f"{number:.12g}"

    def score(self, question: Question, prediction: str) -> float:
        """1 if it is right."""
        given = find_number(prediction)
        wanted = [find_number(reference) for reference in question.references]
        right = (given is not None and w is not None and math.isclose(given, w, rel_tol=1e-9) for w in wanted)
        return float(any(right))

    def check(self, question: Question) -> None:
        """The answer holds a number."""
        if find_number(question.answer) is None:
            raise ValueError(f"the answer must be a number, it is {question.answer!r}")
