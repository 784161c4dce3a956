"""From token ids, one at a time, to text that is final: words come whole, and nothing of a stop is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HALF = "\N{REPLACEMENT CHARACTER}"  # how a tokenizer shows the first bytes of a character


class TextStream:
    """The text of an answer as its tokens come.

    Parameters
    ----------
    tokenizer
        Decodes ids.
    stops : sequence of str
        The text ends before the first of these.
    least : int
        Tokens that come before a stop can be complete.

    Attributes
    ----------
    ids : list of int
        The tokens so far.
    stopped : bool
        Whether a stop was found; what comes later is not looked at.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), least: int = 0):
        self.ids: list[int] = []
        self.stopped = False
        self._tokenizer, self._stops, self._least = tokenizer, tuple(stops), least
        self._start = self._read = 0  # tokens from `start` on give the words before `read` their form
        self._text, self._sent = "", 0

    @property
    def text(self) -> str:
        """All that was given out so far."""
        return self._text[: self._sent]

    def add(self, token: int) -> str:
        """Take one more token; returns what of the text is final now and was not before."""
        self.ids.append(token)
        if self.stopped:
            return ""
        before = self._decode(self.ids[self._start : self._read])
        now = self._decode(self.ids[self._start :])
        if len(now) <= len(before) or now.endswith(HALF):  # a special token, or part of a character
            return ""
        self._start, self._read = self._read, len(self.ids)
        return self._give(now[len(before) :], self._held())

    def finish(self) -> str:
        """What is left when no more tokens come."""
        if self.stopped:
            return ""
        before = self._decode(self.ids[self._start : self._read])
        return self._give(self._decode(self.ids[self._start :])[len(before) :], 0)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _held(self) -> int:
        """Most characters at the end that may turn out to belong to a stop."""
        return max((len(stop) - 1 for stop in self._stops), default=0)

    def _give(self, new: str, held: int) -> str:
        before = len(self._text)
        self._text += new
        # a stop may have begun in what was there, but not ended
        ends = [at for s in self._stops if (at := self._text.find(s, max(0, before - len(s) + 1))) >= 0]
        if ends and len(self.ids) > self._least:
            self._text, self.stopped, held = self._text[: min(ends)], True, 0
        # hold back only what does begin a stop
        longest = min(held, len(self._text) - self._sent)
        tail = next((n for n in range(longest, 0, -1) if any(s.startswith(self._text[-n:]) for s in self._stops)), 0)
        given = self._text[self._sent : len(self._text) - tail]
        self._sent += len(given)
        return given
