"""What one rendering of a template may make: everything that it makes is taken from a budget, before it is made.

Values are shared, so that a list of lists of lists can say more than it holds: what counts is what it would say.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.sandbox import SecurityError

MOST = 20_000_000  # characters and elements that one rendering may make on its way; about a second of work
ELEMENT = 50  # what a thing in a list counts
WIDEST = 10_000  # of a padded or indented text

_left: ContextVar[list[int] | None] = ContextVar("left", default=None)


class TooMuch(SecurityError):
    """A template wants to make more than it may."""


@contextmanager
def budget() -> Iterator[None]:
    """A rendering: what is made inside is counted."""
    token = _left.set([MOST])
    try:
        yield
    finally:
        _left.reset(token)


def spend(amount: int) -> None:
    """Take from the budget."""
    left = _left.get()
    if left is None:  # outside of a rendering jinja2 only folds constants, each by itself
        left = [MOST]
    left[0] -= amount
    if left[0] < 0:
        raise TooMuch("the template makes too much: more than a definition's field can need")


def size_of(value: Any) -> int:
    """Characters that a value would say, and `ELEMENT` for each thing in it; stops where the budget does."""
    total, open_ = 0, [value]
    while open_:
        value = open_.pop()
        if isinstance(value, (str, bytes, bytearray)):
            total += len(value)
        elif isinstance(value, (list, tuple, set, frozenset)):
            open_ += value
        elif not isinstance(value, (int, float)) and isinstance(value, Mapping):
            open_ += itertools.chain.from_iterable(value.items())
        total += ELEMENT
        if total > MOST:
            break
    return total


def check_format(text: Any) -> None:
    """Widths and precisions in a format are written out and small."""
    if re.search(r"%[^a-zA-Z%]*(\d{5}|\*)|\{[^{}]*:[^{}]*(\d{5}|\{)", str(text)):
        raise TooMuch(f"{str(text)[:40]!r} has a width that is too large for a template")


def check_width(*values: Any) -> None:
    """Refuse a number of characters, columns or digits that is too large."""
    for value in values:
        if isinstance(value, int) and abs(value) > WIDEST:
            raise TooMuch(f"{value} is too large for a template: at most {WIDEST:,}")


def spend_replaced(text: Any, old: Any, new: Any) -> None:
    """What replacing `old` by `new` writes."""
    old, new = str(old), str(new)
    spend(str(text).count(old) * len(new))


def spend_json(value: Any, *widths: Any, **named: Any) -> None:
    """What writing a value as JSON makes: escapes, and an indentation for each thing in it."""
    check_width(*widths, *named.values())
    spend(16 * size_of(value))


def spend_indented(text: Any, *extra: Any) -> None:
    """What indenting each line of a text adds."""
    added = sum(v if isinstance(v, int) else len(str(v)) for v in extra)
    spend((str(text).count("\n") + 1) * added)
