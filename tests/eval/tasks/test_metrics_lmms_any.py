"""Scores of any prediction beside lmms-eval's own functions: texts that hypothesis makes up, not only chosen ones."""

from __future__ import annotations

import copy
import string
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lmms_scores import CASES, load

from vtc.eval.tasks.metrics import metric
from vtc.eval.tasks.metrics.letters import find_option

pytest.importorskip("lmms_eval", reason="the extra lmms is not installed: pip install 'vtc[lmms]'")

LETTERED = ("mmstar", "videomme", "realworldqa", "mvbench")  # a letter is looked for in a sentence
PIECES = {
    "pope": ["yes", "no", "Yes", "NO", "not", "maybe"],
    "mme": ["yes", "no", "Yes", "NO", "y", "n", ".", "not", "maybe", "unknown"],
    "gqa": ["no", "woman", "t-shirt", "tshirt", "T", "shirt"],
    "textvqa": ["nokia", "Nokia's", "10:30", "10.30", "half past", "the", "a", "two"],
    "vqav2": ["down", "at table", "table", "2", "two", "3", "1,000", "dont", "don't", "The"],
    "vizwiz": ["soda", "coke", "unanswerable", "yes", "no", "'s"],
    "scienceqa_img": [*"ABCDEb", ".", "A.", "B. wood", "copper", "("],
    "seed": [*"ABCDEb", ".", "Because", "(", "one"],
    "ai2d": [*"ABCDEb", ".", "A.", " B.", "leaf", "("],
    "chartqa": ["14", "57.5%", "Yes", "yes", "%", "-", ".", "1e1", "nan", "inf", "13.3", "1,4"],
    "docvqa": ["1/8/93", "Jan 8 1993", "The Great", "Atlantic", "JAN", "8"],
    "ocrbench": ["CENTRE", "centre", "ten", "10", "１０", "\\frac", "{", "X", "}", "{2}", "\n"],
}
SPACES = st.sampled_from(["", " ", " ", "\n", "\t", ", "])
ANY = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@lru_cache(maxsize=32)
def questions(name: str) -> list[tuple[Any, dict[str, Any]]]:
    """A benchmark's questions with lmms-eval's rows."""
    import tempfile

    with tempfile.TemporaryDirectory() as root:
        tasks, rows = load(name, Path(root))
    return list(zip(tasks.questions, rows, strict=True))


def agree(name: str, prediction: str) -> None:
    """Both score every question alike."""
    for q, row in questions(name):
        theirs = CASES[name].score(copy.deepcopy(row), [prediction])
        assert metric(q.metric).score(q, prediction) == pytest.approx(theirs, abs=1e-12), (prediction, q.answer)


def texts(name: str) -> st.SearchStrategy[str]:
    """Anything, and what is near to the answers."""
    pieces = st.lists(st.tuples(st.sampled_from(PIECES[name]), SPACES), max_size=4)
    return ANY | pieces.map(lambda parts: "".join(word + space for word, space in parts))


def comparable(name: str, prediction: str) -> bool:
    """Whether both read it alike; the rest is in ``test_metrics_lmms``, as known differences."""
    if name == "pope":  # lmms-eval wants the bare word, so a sentence with one is compared only where it has none
        return prediction.lower() in ("yes", "no") or not metric("pope").parse(questions("pope")[0][0], prediction)
    if name in ("gqa", "ai2d"):  # spaces that are left of punctuation
        bare = prediction.translate(str.maketrans("", "", string.punctuation))
        return bare == bare.strip()
    return True


def test_every_benchmark_is_compared() -> None:
    assert {*PIECES, *LETTERED, "mmbench_en", "mmbench_cn"} == set(CASES)  # MMBench: by groups, in test_metrics_lmms


@pytest.mark.parametrize("name", PIECES)
@settings(max_examples=150)
@given(data=st.data())
def test_any_text(name: str, data: st.DataObject) -> None:
    prediction = data.draw(texts(name)).strip()  # as the answers of a sweep are
    assume(comparable(name, prediction))
    agree(name, prediction)


BEFORE = st.sampled_from(
    ["", "The answer is ", "the correct option is: ", "It is ", "i choose ", "\n", "best guess is "]
)
SHAPES = st.sampled_from(["({})", "{}.", "{}:", "{})", "**{}**", "{}", "({}).", "{}. "])
AFTER = st.lists(st.sampled_from(["it", "is", "the", "red", "one", "because", "round", "2", "!"]), max_size=3)


@pytest.mark.parametrize("name", LETTERED)
@settings(max_examples=150)
@given(before=BEFORE, shape=SHAPES, letter=st.sampled_from("ABCD"), after=AFTER)
def test_sentences_with_one_letter(name: str, before: str, shape: str, letter: str, after: list[str]) -> None:
    """Where there is one capital and it is no article, both find it."""
    assume(not (letter == "A" and shape == "{}" and after))
    if name == "mvbench":  # finds capitals in any case: neither `a`, nor what stands behind other words
        assume(not before.strip())
    words = " ".join(after)
    separator = "" if not words or shape == "{}. " else " "
    agree(name, before + shape.format(letter) + separator + words)


NO_LETTERS = st.characters(codec="utf-8", exclude_characters="ABCDEabcde\0", exclude_categories=["Lo", "So", "No"])


@pytest.mark.parametrize("name", LETTERED)
@settings(max_examples=100)
@given(text=st.text(NO_LETTERS))
def test_without_letters_there_is_no_choice(name: str, text: str) -> None:
    if name == "mvbench":  # takes an option's text, and no empty answer
        assume(text.strip() and not find_option(text, ("3", "2", "4")))
    agree(name, text)
