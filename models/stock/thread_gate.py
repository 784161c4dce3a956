"""Keeps hooks from coming and going while another thread is inside the model.

A generate() whose hooks vanish half-way would go on with a pruned cache and the wrong masks. So whoever unwraps waits
until the model is empty, and whoever calls the model meanwhile waits for the unwrapping.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from .per_thread import ThreadState

PATIENCE = 60.0  # seconds


@dataclass
class _Gate:
    """What all threads see: who is inside, and whether the hooks are there (open), changing (shut) or gone."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    inside: set[int] = field(default_factory=set)
    state: str = "open"


class Traffic(ThreadState):
    """Threads inside one wrapped model, and the one that wants to change its hooks.

    Attributes
    ----------
    depth : int
        How deep this thread is inside: a forward within a generate counts too.
    """

    depth = 0

    def __init__(self, gate: _Gate) -> None:  # called in every thread, with the same gate
        self._gate = gate
        self._me = threading.get_ident()

    def enter(self) -> bool:
        """Go in; waits while hooks are changed. False if they are gone by then."""
        if self.depth == 0 and not self._go_in():
            return False
        self.depth += 1
        return True

    def _go_in(self) -> bool:
        gate = self._gate
        # first in, then a look: whoever shuts does it the other way round, and no lock is needed for each token
        gate.inside.add(self._me)
        if gate.state == "open":
            return True
        with gate.changed:
            gate.inside.discard(self._me)
            gate.changed.notify_all()
            gate.changed.wait_for(lambda: gate.state != "shut", PATIENCE)
            if gate.state == "open":
                gate.inside.add(self._me)
            return gate.state == "open"

    def leave(self) -> None:
        """Go out."""
        self.depth -= 1
        if self.depth == 0:
            gate = self._gate
            gate.inside.discard(self._me)
            if gate.state == "shut":  # somebody waits for it
                with gate.changed:
                    gate.changed.notify_all()

    def alone(self) -> bool:
        """Whether no other thread is inside."""
        return len(self._gate.inside) <= (self.depth > 0)

    def shut(self) -> None:
        """Wait until nobody is inside, and let nobody in.

        Raises
        ------
        RuntimeError
            If this very thread is inside (a callback of generate), or another one stays there.
        """
        gate = self._gate
        if self.depth:
            raise RuntimeError(
                "vtc can't change or remove its hooks while the model runs in this very thread (a stopping criterion, "
                "a streamer or a hook called vtc): do it when generate() has returned"
            )
        with gate.changed:
            before, gate.state = gate.state, "shut"
            if not gate.changed.wait_for(lambda: not gate.inside, PATIENCE):
                self._set(before)
                raise RuntimeError(
                    f"another thread has been inside the wrapped model for {PATIENCE:.0f} seconds, so vtc can't change "
                    "its hooks: wait until its generate() has returned"
                )

    def open(self) -> None:
        """Let calls in: the hooks are there."""
        with self._gate.changed:
            self._set("open")

    def gone(self) -> None:
        """The hooks are removed: who waited goes on without them."""
        with self._gate.changed:
            self._set("gone")

    def _set(self, state: str) -> None:
        self._gate.state = state
        self._gate.changed.notify_all()


def traffic() -> Traffic:
    """Of one wrapped model."""
    return Traffic(_Gate())
