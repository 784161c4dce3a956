"""Which measured layers stand for which of the full depth: few layers are run, and all are counted.

A layer costs what another one of its kind costs that sees as many tokens. So each layer of the full model is matched
with the measured ones of the same kind between the same two stops of the method; the one right before a stop is matched
with its like, because a method often reads its attention.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layers:
    """Kinds of all layers of a stack, and which of them are there to be measured."""

    kinds: tuple[Hashable, ...]
    picked: tuple[int, ...]

    @classmethod
    def all(cls, depth: int) -> Layers:
        """A stack that is there as a whole."""
        return cls(tuple(range(depth)), tuple(range(depth)))

    @property
    def depth(self) -> int:
        """Of the full stack."""
        return len(self.kinds)

    @property
    def cut(self) -> bool:
        """Whether layers are missing."""
        return len(self.picked) < self.depth

    def match(self, what: str, full: Sequence[int] = (), here: Sequence[int] = ()) -> list[list[int]]:
        """For each layer of the full stack, the measured ones (by their place in ``picked``) that stand for it.

        Parameters
        ----------
        what : str
            Of the stack, for errors.
        full, here : sequence of int
            The layers before which a method prunes, in the full stack and in the measured one.

        Raises
        ------
        ValueError
            If no measured layer is like one of them.
        """
        if not self.cut:
            return [[i] for i in range(self.depth)]
        if len(full) != len(here):
            raise ValueError(
                f"it prunes {len(here)} times in the {len(self.picked)} {what} layers measured and {len(full)} times "
                f"in all {self.depth}, so that all of them have to be measured"
            )
        exact: dict[Hashable, list[int]] = {}
        near: dict[Hashable, list[int]] = {}
        for i, layer in enumerate(self.picked):
            place = (_between(i, here), self.kinds[layer])
            exact.setdefault((*place, i + 1 in here), []).append(i)
            near.setdefault(place, []).append(i)
        found = []
        for layer, kind in enumerate(self.kinds):
            place = (_between(layer, full), kind)
            like = exact.get((*place, layer + 1 in full)) or near.get(place)
            if like is None:
                raise ValueError(f"none of the {len(self.picked)} {what} layers measured is like layer {layer} of all")
            found.append(like)
        return found


def _between(layer: int, stops: Sequence[int]) -> int:
    """How many stops are before a layer."""
    return sum(stop <= layer for stop in stops)


def spread_over(values: Sequence[float], match: Sequence[Sequence[int]]) -> list[float]:
    """A value for each layer of the full stack: the mean of those that stand for it."""
    return [sum(values[i] for i in like) / len(like) for like in match]
