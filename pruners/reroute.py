"""Reroute: tokens that a method would drop go round its layers and are candidates again at its next stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from .base import Lent, Loan, LoanAgain, Merged, Stop
from .inner_method import DEPTH, Around
from .registry import register_pruner
from .signals import AttentionAhead
from .visual_tokens import VisualTokens


@register_pruner("reroute")
@dataclass(kw_only=True)
class Reroute(Around):
    """Reroute (Yang, Lo and Liu, 2026, arXiv 2606.12412): bypass in the place of removal, around any decoder method.

    Parameters
    ----------
    keep : float, optional
        What the first method keeps, as a fraction; a count means nothing here. Left out, what it keeps by itself.
    first : str
        The method whose scores and stages these are, by name: one of the decoder stage that reads nothing but
        `AttentionAhead` and drops as many as asked. ``pyramiddrop`` is one of the paper's; one stop of it, as with
        ``first_params={"layers": (2,)}``, is about what the paper makes of FastV.
    first_params : dict, optional
        Parameters of the first method.

    Notes
    -----
    Stage: decoder. A stop of the first method before layer l that keeps a share r begins a stage, up to its next stop
    or the end. There it chooses ``floor(r N)`` of ALL N visual tokens by the states that enter layer l; they go through
    the stage's layers, the others go round them, ``h = h``, and are candidates again at the next stage::

        layers l .. l' - 1:  chosen and text: h + layer(h among them);  the others: h           score: as of `first`

    Costs what the first method costs (its look ahead is at all columns), and each layer's cache holds what that layer
    was given, so FLOPs and cache are those of the first method. After the last layer all tokens are there.

    A stage is a ``Loan`` per layer to the same tokens. So a choice is of a sample's tokens together, all its pictures
    and newlines as one row, rounded down; the first method by itself chooses span by span and rounds to the nearest.
    Written from the paper's summary; its code has no licence and was not read. Not known: its schedules' exact layers
    and its variant on Nuwa, which is not here. Not under ``torch.compile``, as all that lends (``pmod``).
    """

    first: str = "pyramiddrop"
    first_params: dict[str, Any] | None = None

    paper: ClassVar[str] = "arXiv 2606.12412"
    ragged: ClassVar[bool] = True
    own_flags: ClassVar[tuple[str, ...]] = ("ragged",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep is not None and not isinstance(self.keep, float):
            raise ValueError(
                f"reroute.keep={self.keep} must be a fraction: of a sample's tokens, all pictures together"
            )
        stops = replace(self._first, keep=0.5).stops(DEPTH)
        reads = [s for stop in stops for s in self._first.signals_at(stop) if not isinstance(s, AttentionAhead)]
        other = self._first.merges or self._first.adaptive_count or self._first.joins_crops or not self._first.ragged
        other |= self._first.calibrates
        lasting = all(stop.stage == "decoder" and stop.keep and not isinstance(stop, Loan) for stop in stops)
        if reads or other or not lasting:
            why = (
                f"it reads {reads[0]}"
                if reads
                else "it merges, joins crops, counts itself, takes equal rows only or drops elsewhere"
            )
            raise ValueError(
                f"reroute.first={self.first!r} must drop tokens in the decoder, as many as asked, by AttentionAhead or "
                f"the states alone, such as pyramiddrop; {why}"
            )

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """A loan for each layer of each stage."""
        found: list[Stop] = []
        stops = sorted(replace(self._first, keep=self.keep or self._first.keep).stops(depth), key=_layer)
        for stop, end in zip(stops, [*map(_layer, stops[1:]), depth], strict=True):
            if not isinstance(stop.keep, float):
                return (stop,)  # a keep that is missing is told by the host
            if stop.keep < 1:
                layers = range(_layer(stop), end)
                found += (Loan(i, stop.keep) if i == layers[0] else LoanAgain(i, stop.keep) for i in layers)
        return tuple(found)

    def select(self, tokens: VisualTokens, k: int) -> Lent:
        """The first method's choice; all gates are 1."""
        found = self._first.select(tokens, k)
        assert not isinstance(found, (Merged, Lent))
        return Lent(found, torch.ones(tokens.ids.shape, device=found.device))


def _layer(stop: Stop) -> int:
    return stop.layer or 0
