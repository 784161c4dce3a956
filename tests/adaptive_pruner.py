"""A method that keeps another number than asked."""

from __future__ import annotations

from methods import Setting


class Of(Setting):
    """The setting of a method that is not registered."""

    def __str__(self) -> str:
        return str(self.pruner)
