"""``--image`` is read alike by ``vtc plan`` and ``vtc speed``."""

from __future__ import annotations

import pytest

from vtc.eval.terminal.option_checks import picture_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("1280x960", (1280, 960)), (" 56X70 ", (56, 70)), ("1280 × 960", (1280, 960)), ("65500x1", (65500, 1))],
)
def test_a_size(text: str, size: tuple[int, int]) -> None:
    assert picture_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "1280", "0x5", "5x0", "65501x1", "1x99999", "-1x5", "1.5x2", "1x2x3"])
def test_none(text: str) -> None:
    with pytest.raises(ValueError, match="must be WIDTHxHEIGHT in pixels from 1 to 65500"):
        picture_size(text)
