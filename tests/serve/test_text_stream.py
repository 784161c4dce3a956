"""Streamed text: joined it is the whole text up to the first stop, and no part of a stop is sent."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtc.serve.generation.text_stream import TextStream


class Bytes:
    """A tokenizer of bytes: characters come in several tokens; 256 is a special token."""

    def decode(self, ids: Sequence[int], **kwargs: bool) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


TEXTS = st.text(alphabet="abc é€𝄞", max_size=20)


@given(TEXTS, st.lists(st.text(alphabet="abc é€", min_size=1, max_size=4), max_size=3))
def test_pieces_join_to_the_text_before_the_first_stop(text: str, stops: list[str]) -> None:
    stream, given = TextStream(Bytes(), stops), ""
    ids = [*text.encode(), 256]
    for token in ids:
        given += stream.add(token)
        assert not any(stop in given for stop in stops)
        if stream.stopped:
            break
    given += stream.finish()
    ends = [text.index(stop) for stop in stops if stop in text]
    # the stop that is complete first ends the answer; of those complete at once the one that begins first
    complete = min((text.index(s) + len(s) for s in stops if s in text), default=None)
    first = [text.index(s) for s in stops if s in text and text.index(s) + len(s) <= (complete or 0)]
    assert given == stream.text == (text if not ends else text[: min(first)])
    assert stream.stopped == bool(ends)


@given(st.text(alphabet="abc", max_size=12), st.sampled_from(["a", "bc", "aab"]), st.integers(0, 13))
def test_a_stop_counts_once_the_least_is_there(text: str, stop: str, least: int) -> None:
    stream, given = TextStream(Bytes(), [stop, "xyz"], least), ""
    for token in text.encode():
        given += stream.add(token)
        if stream.stopped:
            break
    given += stream.finish()
    ends = [i for i in range(len(text)) if text.startswith(stop, i) and i + len(stop) > least]
    assert given == stream.text == text[: ends[0] if ends else None]
    assert stream.stopped == bool(ends)


def test_text_is_given_as_soon_as_it_is_sure() -> None:
    stream = TextStream(Bytes(), ["abc"])
    assert [stream.add(i) for i in b"xaby"] == ["x", "", "", "aby"]


@pytest.mark.parametrize("text", ["é", "€", "𝄞"])
def test_a_character_in_parts_is_given_whole(text: str) -> None:
    stream = TextStream(Bytes())
    *parts, last = text.encode()
    assert [stream.add(i) for i in parts] == [""] * len(parts)
    assert stream.add(last) == text


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    stream = TextStream(Bytes())
    stream.add(0xC3)
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"
