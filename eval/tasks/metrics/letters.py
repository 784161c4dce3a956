"""Finding the chosen option in the answer to a multiple choice."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence

LETTERS = "ABCD"
_CLOSE = r"[.:,;)\]\u3001\u3002]"  # what sets a letter off from the option's text, the Chinese comma and stop included
# "A cat" and "it is A cat" hold the article, "A is right", "A because" and "A or B" the letter
_ARTICLE = r"A(?=\s+[a-z])(?!\s+(?:or|and|is|was|because|since|as|for)\b)"
_PHRASE = (
    r"(?:(?:answer|option|choice)(?:\s+is|\s+would\s+be)?|i\s+(?:choose|pick|select)|答案[是为]?|选项?)"
    r"(?:\s+option)?[\s:*]*[(\[]?"
)


def letters_for(options: Sequence[str]) -> str:
    """The letters that a question with these options can be answered by; A to D if they are not known."""
    return string.ascii_uppercase[: len(options)] if options else LETTERS


def find_letter(text: str, letters: str = LETTERS) -> str:
    """The letter that an answer chooses, empty if none or if it names several.

    In this order: the first line is the letter; it follows "answer is" or the like (the last time); it opens the
    answer, set off by a bracket, period, colon or comma; it stands in brackets, or before such a mark, anywhere (the
    last time); it is the only letter that stands alone. The article "A" is none.

    Examples
    --------
    >>> [find_letter(t) for t in ("b", "B. cat", "The answer is (B).", "A cat", "A or B", "Because")]
    ['B', 'B', 'B', '', '', '']
    """
    text = unicodedata.normalize("NFKC", text).strip()
    one = f"[{letters}]"
    whole = re.match(rf"\W*({one})[^\w\n]*(?:\n|$)", text, re.IGNORECASE)
    if whole:
        return whole.group(1).upper()
    phrases = re.findall(rf"(?i:{_PHRASE})(?!{_ARTICLE})({one})(?![A-Za-z'])", text)
    if phrases:
        return phrases[-1]
    opening = re.match(rf"\W*({one})\W*?{_CLOSE}", text)
    if opening:
        return opening.group(1)
    for pattern in (rf"[(\[]({one})[)\]]", rf"(?<![A-Za-z])({one}){_CLOSE}"):
        found = re.findall(pattern, text)
        if found:
            return found[-1]
    loose = set(re.findall(rf"(?<![A-Za-z])(?!{_ARTICLE})({one})(?![A-Za-z'])", text))
    return loose.pop() if len(loose) == 1 else ""


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", unicodedata.normalize("NFKC", text).lower()).split())


def find_option(text: str, options: Sequence[str]) -> str:
    """The letter of the only option whose text is the answer, or else occurs in it; empty if none or several do."""
    given, plain = _plain(text), [_plain(option) for option in options]
    for holds in (
        [bool(option) and option == given for option in plain],
        [bool(option) and f" {option} " in f" {given} " for option in plain],
    ):
        if sum(holds) == 1:
            return string.ascii_uppercase[holds.index(True)]
    return ""
