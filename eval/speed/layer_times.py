"""The time that modules take inside a forward, by marks before and after each of their calls."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from torch import nn

from vtc.eval.cost.clocks import Clock


class ModuleTimes:
    """Context in which the calls of some modules are timed; enter it behind whatever else hooks them.

    Parameters
    ----------
    modules : sequence of nn.Module
        None of them inside another one of the same list's call, except by design of the reader.
    clock : Clock
        What is read; of a GPU nothing is waited for until ``take``.
    """

    def __init__(self, modules: Sequence[nn.Module], clock: Clock):
        self.modules, self.clock = modules, clock
        self._marks: list[list[tuple[Any, Any]]] = [[] for _ in modules]
        self._open: list[Any] = [None] * len(modules)
        self._handles: list[Any] = []

    def __enter__(self) -> ModuleTimes:
        for i, module in enumerate(self.modules):
            self._handles.append(module.register_forward_pre_hook(lambda *_, i=i: self._begin(i)))
            self._handles.append(module.register_forward_hook(lambda *_, i=i: self._end(i)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _begin(self, i: int) -> None:
        self._open[i] = self.clock.mark()

    def _end(self, i: int) -> None:
        self._marks[i].append((self._open[i], self.clock.mark()))

    def take(self) -> list[float]:
        """Seconds of each module since the last call of this."""
        self.clock.wait()
        found = [sum(self.clock.between(*pair) for pair in pairs) for pairs in self._marks]
        self._marks = [[] for _ in self.modules]
        return found
