"""Which set-up a ``compressed`` block leaves behind, in whatever order the blocks of a model end."""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn


class Blocks:
    """The open blocks of one model, oldest first; each knows what was there before it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._before: list[tuple[object, Any]] = []

    def begin(self, before: Any) -> object:
        """Note a block that replaces `before`; returns what stands for it."""
        block = object()
        self._before.append((block, before))
        return block

    def end(self, block: object) -> tuple[bool, Any]:
        """Take a block out: whether it was the newest, so that what is given has to come back now.

        The end of an older one changes nothing yet: the block that began after it inherits what was there before.
        """
        place = next(i for i, (known, _) in enumerate(self._before) if known is block)
        _, before = self._before.pop(place)
        if place == len(self._before):
            return True, before
        later, _ = self._before[place]
        self._before[place] = (later, before)
        return False, None


_open: WeakKeyDictionary[nn.Module, Blocks] = WeakKeyDictionary()


def blocks_of(model: nn.Module) -> Blocks:
    """The open blocks of an unwrapped `model`."""
    return _open.setdefault(model, Blocks())
