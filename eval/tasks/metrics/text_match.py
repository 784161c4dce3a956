"""Scoring an answer: normalised exact match, with the two special cases yes/no and numbers."""

from __future__ import annotations

import re

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBERS = {word: str(i) for i, word in enumerate(_WORDS)}
_ARTICLES = {"a", "an", "the"}


def normalise(text: str) -> str:
    """Lower case, without punctuation and articles, number words as digits, single spaces."""
    words = re.sub(r"[^\w\s.%-]", " ", text.lower()).split()
    words = [w.strip(".-_") for w in words]
    return " ".join(_NUMBERS.get(w, w) for w in words if w and w not in _ARTICLES)


def answer_kind(answer: str) -> str:
    """How an answer is scored: ``"yes_no"``, ``"number"`` or ``"exact"``."""
    text = normalise(answer)
    if text in ("yes", "no"):
        return "yes_no"
    return "number" if re.fullmatch(r"-?\d+(\.\d+)?", text) else "exact"


def understood(prediction: str, answer: str) -> str:
    """The part of a prediction that is compared with `answer`, in its normal form; empty if it has none.

    A yes/no question reads the prediction's first yes or no, a number question its first number, every other one its
    whole first line.
    """
    lines = prediction.strip().splitlines()
    given, kind = normalise(lines[0] if lines else ""), answer_kind(answer)
    if kind == "exact":
        return given
    found = re.search(r"\b(yes|no)\b" if kind == "yes_no" else r"(?<![\w.])-?\d+(\.\d+)?", given)
    return found.group() if found else ""


def score(prediction: str, answer: str) -> float:
    """1.0 if what is ``understood`` of the prediction is the answer, else 0.0.

    Examples
    --------
    >>> score("Yes, there is a cube.", "yes"), score("I see 3 cubes", "three"), score("The red one", "red")
    (1.0, 1.0, 0.0)
    """
    given, wanted = understood(prediction, answer), normalise(answer)
    if answer_kind(answer) == "number":
        return float(given != "" and float(given) == float(wanted))
    return float(given == wanted)
