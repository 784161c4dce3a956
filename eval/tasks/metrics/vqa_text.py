"""The normal form of answers in the VQA challenges: punctuation, articles, number words and contractions."""

from __future__ import annotations

import re

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(i) for i, word in enumerate(_NUMBERS)} | {"none": "0"}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_COMMA = re.compile(r"\d,+\d")
_PERIOD = re.compile(r"\.(?!\d)")  # a period in front of a digit is a decimal point

_SINGLE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_DOUBLE = """
    couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've
    something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
"""


def _contractions() -> dict[str, str]:
    """Each contraction by how it is spelt with one apostrophe missing."""
    found = {"somebody'd": "somebodyd"}  # as in the official table
    for word in (_SINGLE + _DOUBLE).split():
        found |= {word[:i] + word[i + 1 :]: word for i, char in enumerate(word) if char == "'"}
    return found


CONTRACTIONS = _contractions()


def strip_punctuation(text: str) -> str:
    """Remove punctuation next to a space, and all of it where a comma stands between digits; else make it a space."""
    comma = _DIGITS_COMMA.search(text) is not None
    out = text
    for mark in PUNCTUATION:
        beside = mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if beside or comma else " ")
    return _PERIOD.sub("", out)


def strip_words(text: str) -> str:
    """Lower case, number words as digits, no articles, contractions with their apostrophes."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_form(text: str) -> str:
    """The normal form of VQAv2."""
    return strip_words(strip_punctuation(re.sub(r"[\n\t]", " ", text).strip()))


def textvqa_form(text: str) -> str:
    """The normal form of TextVQA and VizWiz, which also parts possessives from their word."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return vqa_form(text)
