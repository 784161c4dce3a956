"""What the front end tells the worker of each picture, as fields beside its pixels.

Made with the placeholders and before the picture is cached or sent, so that both sides know the same: how many tokens
it has and keeps, by what settings, under which name its choice is remembered, and the text around it if that is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

LENGTHS, SETTINGS, KEY, TEXT = "vtc_lengths", "vtc_settings", "vtc_key", "vtc_text"
HERE, OTHER = -1, -2  # in a text: this picture, and another one


class Around(NamedTuple):
    """Token ids of the text before and behind a picture, and those behind the last picture of its request."""

    before: list[int]
    after: list[int]
    question: list[int]


@dataclass(frozen=True)
class ItemFields:
    """Of one picture.

    Attributes
    ----------
    lengths : list of int
        Tokens of each of its spans, before pruning.
    settings : list of float
        ``RequestSettings.packed``.
    key : bytes
        Name of picture and settings.
    text : list of int or None
        Token ids of the prompt, ``HERE`` and ``OTHER`` in the place of pictures; None where nothing reads it.
    """

    lengths: list[int]
    settings: list[float]
    key: bytes
    text: list[int] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """As fields, by name."""
        found = {
            LENGTHS: torch.tensor(self.lengths),
            SETTINGS: torch.tensor(self.settings, dtype=torch.float64),
            KEY: torch.tensor(list(self.key), dtype=torch.uint8),
        }
        return found if self.text is None else {**found, TEXT: torch.tensor(self.text)}

    @property
    def around(self) -> Around:
        """The text around it; nothing where nothing is read."""
        text = [HERE] if self.text is None else self.text
        place = text.index(HERE)
        last = max(i for i, token in enumerate(text) if token < 0)
        words = [[t for t in part if t >= 0] for part in (text[:place], text[place:], text[last:])]
        return Around(*words)


def split_fields(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[ItemFields]]:
    """A batch's arguments without our fields, and those item by item; none of them where nothing is to be pruned."""
    others = {name: value for name, value in given.items() if name not in (LENGTHS, SETTINGS, KEY, TEXT)}
    if SETTINGS not in given:
        return others, []
    texts: Sequence[Tensor | None] = list(given.get(TEXT, [None] * len(given[SETTINGS])))
    rows = zip(given[LENGTHS], given[SETTINGS], given[KEY], texts, strict=True)
    return others, [
        ItemFields(lengths.tolist(), settings.tolist(), bytes(key.tolist()), None if text is None else text.tolist())
        for lengths, settings, key, text in rows
    ]


def cut_run(
    tokens: Sequence[int], placeholder: Sequence[bool], lengths: Sequence[int], kept: Sequence[int]
) -> list[int]:
    """The tokens of an item after pruning: of each span's placeholders the first ones, and all that is none.

    Parameters
    ----------
    tokens : sequence of int
        What stands for the item in the prompt.
    placeholder : sequence of bool
        Which of them stand for a row of features.
    lengths, kept : sequence of int
        Placeholders of each span, and how many are left.

    Returns
    -------
    list of int
        Places in `tokens`.
    """
    keep = [within < k for n, k in zip(lengths, kept, strict=True) for within in range(n)]
    rows = iter(keep)
    return [i for i, is_row in enumerate(placeholder) if not is_row or next(rows)]


def chunks(full: Sequence[int], limit: int) -> list[range]:
    """Consecutive items that the tower may run at once: `limit` tokens BEFORE pruning at most, or one item alone."""
    found, first, total = [], 0, 0
    for i, n in enumerate(full):
        if i > first and total + n > limit:
            found.append(range(first, i))
            first, total = i, 0
        total += n
    return [*found, range(first, len(full))] if full else []


def cut_items(given: Mapping[str, Any], items: range, count: int, flat: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The arguments of some of a batch's items.

    Parameters
    ----------
    given : mapping
        Arguments of `count` items, each a row of what is as long.
    items : range
        Which.
    flat : mapping
        Of arguments that hold the items' rows one behind the other: how many each has.
    """
    found = dict(given)
    if len(items) == count:
        return found
    for name, value in given.items():
        if name in flat:
            starts = [0, *torch.tensor(flat[name]).cumsum(0).tolist()]
            found[name] = value[starts[items.start] : starts[items.stop]]
        elif isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.dim()):
            found[name] = value[items.start : items.stop] if len(value) == count else value
    return found
