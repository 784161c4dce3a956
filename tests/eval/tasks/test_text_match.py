"""What counts as a right answer."""

from __future__ import annotations

import pytest

from vtc.eval.tasks.metrics.text_match import answer_kind, normalise, score


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("red", "red", True),
        ("Red.", "red", True),
        ("the red", "red", True),
        ("The red one", "red", False),
        ("dark red", "red", False),
        ("red\nbecause", "red", True),
        ("top-left", "top-left", True),
        ("top left", "top-left", False),
        ("Yes, there is one.", "yes", True),
        ("There is no cube", "no", True),
        ("nothing", "no", False),
        ("yes", "no", False),
        ("", "no", False),
        ("I see 3 cubes", "3", True),
        ("three", "3", True),
        ("3", "three", True),
        ("13", "3", False),
        ("3.0", "3", True),
        ("45", "45", True),
        ("4 5", "45", False),
        ("", "45", False),
    ],
)
def test_score(prediction: str, answer: str, right: bool):
    assert score(prediction, answer) == float(right)


def test_kinds_and_normal_form():
    assert [answer_kind(a) for a in ("Yes", "no.", "7", "seven", "red", "2 red")] == [
        "yes_no", "yes_no", "number", "number", "exact", "exact",
    ]  # fmt: skip
    assert normalise("  The  RED, square! ") == "red square"
