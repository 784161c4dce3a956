"""Hooks of a model's layers that are set only while a forward needs them, so that other forwards cost what they did.

A module with hooks takes torch's long way through its call, also where no hook does anything, and a decoding step
passes each layer. So what is set on layers is taken off before a step that needs nothing of it, and comes back before
the next forward that does. Their order among other hooks stays.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from .attention_taps import AttentionTap


class SleepingHooks:
    """What is set on the layers of one model, and who needs it.

    Attributes
    ----------
    awake : bool
        Whether it is set.
    stays : bool
        Whether it is for good.
    """

    def __init__(self) -> None:
        self.awake = True
        self.stays = False
        self._users = 0
        self._lock = threading.Lock()
        self._hooks: list[_Hook] = []
        self._taps: list[AttentionTap] = []

    def add(self, *handles: Any) -> None:
        """Take over hooks that were just registered, by their handles."""
        self._hooks += [_Hook(handle.hooks_dict_ref(), handle.id) for handle in handles]

    def tap(self, tap: AttentionTap) -> None:
        """Take over a tap that is attached."""
        self._taps.append(tap)

    def wake(self) -> None:
        """A forward that needs them begins."""
        with self._lock:
            self._users += 1
            self._set()

    def leave(self) -> None:
        """It is over; they stay set until a forward comes that does not need them."""
        with self._lock:
            self._users -= 1

    def sleep(self) -> None:
        """Take them off, unless another thread's forward needs them."""
        with self._lock:
            if not self.awake or self._users or self.stays:
                return
            self.awake = False
            for hook in self._hooks:
                hook.remove()
            for tap in self._taps:
                tap.pause()

    def stay(self) -> None:
        """Set them for good: before they are removed, and where ``torch.compile`` has a graph that knows them."""
        with self._lock:
            self.stays = True
            self._set()

    def _set(self) -> None:
        if self.awake:
            return
        for hook in self._hooks:
            hook.put_back()
        for tap in self._taps:
            tap.resume()
        self.awake = True


class _Hook:
    """One entry of a module's table of hooks."""

    def __init__(self, table: OrderedDict[int, Any], number: int):
        self.table, self.number = table, number
        self.hook: Any = None
        self.before: list[int] = []

    def remove(self) -> None:
        """Take it off."""
        if len(self.table) > 1:
            numbers = list(self.table)
            self.before = numbers[: numbers.index(self.number)] if self.number in numbers else []
        self.hook = self.table.pop(self.number, None)

    def put_back(self) -> None:
        """Set it again, behind the hooks that stood before it."""
        if self.hook is None:  # somebody else removed it
            return
        behind = [n for n in self.table if n not in self.before]
        self.table[self.number] = self.hook
        for number in behind:
            self.table.move_to_end(number)
