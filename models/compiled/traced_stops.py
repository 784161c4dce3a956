"""A stop of the decoder stage within a graph of ``torch.compile``: the method is one operator, and the graph goes on.

A graph that breaks inside the text model's loop over its layers leaves the whole loop to the interpreter. So choosing
is an operator that the compiler does not look into: hidden states and what else the methods read go in, and what is
left of the hidden states, and where it stood, comes out. How many columns those are, the compiler is told, or that only
the choice will tell.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtc.models.language.column_arguments import ALONG
from vtc.models.language.decoder_hooks import DecoderSide
from vtc.models.language.decoder_signals import finished, resolve
from vtc.models.language.forward_state import Run
from vtc.models.stock.call_arguments import Call, signature_of, takes
from vtc.models.stock.tripwire import trip
from vtc.pruners.base import resolve_keep
from vtc.pruners.signals import AttentionAhead, DecoderHidden, DecoderSignal, DecoderTransition, Signal

MADE_HERE = (AttentionAhead, DecoderHidden)  # by the operator, of the hidden states that it is given

_numbers = itertools.count()
_known: weakref.WeakValueDictionary[int, TracedStops] = weakref.WeakValueDictionary()


@torch.library.custom_op(
    "vtc::stop",
    mutates_args=(),
    schema="(Tensor hidden, Tensor[] signals, Tensor[] rotary, Tensor? positions, Tensor? mask, int least, int most, "
    "int layer, int model) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _stop(hidden, signals, rotary, positions, mask, least, most, layer, model):  # type: ignore[no-untyped-def]
    turned = tuple(rotary) if len(rotary) > 1 else next(iter(rotary), None)
    given = {"rotary": turned, "positions": positions, "mask": mask}
    return _known[model].choose(hidden, signals, given, (least, most), layer)


@_stop.register_fake
def _(hidden, signals, rotary, positions, mask, least, most, layer, model):  # type: ignore[no-untyped-def]
    width = least
    if least < most:
        # a size that only the data tell: torch.library's new_dynamic_size() wants a setting of the user's, and would
        # break the graph without it
        width = hidden.fake_mode.shape_env.create_unbacked_symint()
        torch._check(width >= least)
        torch._check(width <= most)
    places = (hidden.new_empty(hidden.shape[0], width, dtype=torch.long) for _ in range(3))
    return (hidden.new_empty(hidden.shape[0], width, hidden.shape[2]), *places)


class Width(NamedTuple):
    """How many columns a stop leaves, at least and at most, and whether any of them may be padding."""

    least: int
    most: int
    padded: bool


class TracedStops:
    """The stops of one wrapped model, as far as they can be an operator.

    Parameters
    ----------
    side : DecoderSide
        The hooks of the layers.
    book : callable
        Notes for the layers from one to the next stop what is about to enter them, `book(layer, hidden)`.
    """

    def __init__(self, side: DecoderSide, book: Callable[[int, Tensor], object]):
        self.side, self.stops, self.local, self.book = side, side.stops, side.local, book
        self.number = next(_numbers)
        _known[self.number] = self
        # what each stop is the first to see of what it or a later one reads: behind it other columns are left
        self.signals: dict[int, tuple[DecoderSignal, ...]] = {}
        self.looking: set[int] = set()  # stops where a method looks ahead into the layer
        self.fit = True
        at = sorted(self.stops)
        seen: dict[DecoderSignal, None] = {}
        for i in at:
            read = [resolve(s, i) for pruner, stop in self.stops[i] for s in pruner.signals_at(stop)]
            self.fit &= self._fits(i, read)
            seen |= dict.fromkeys(s for s in read if isinstance(s, DecoderSignal) and not isinstance(s, MADE_HERE))
            if any(isinstance(s, AttentionAhead) for s in read):
                self.looking.add(i)
        for before, i in zip([0, *at], at, strict=False):
            self.signals[i] = tuple(s for s in seen if before <= (s.layer or 0) < i)

    def _fits(self, layer: int, read: list[Signal]) -> bool:
        """Whether what methods read is there when they choose before a layer."""
        odd = (
            (isinstance(s, DecoderHidden) and s.layer != layer - 1)
            or (isinstance(s, AttentionAhead) and not self._can_look(layer))
            for s in read
        )
        return not any(odd)

    def _can_look(self, layer: int) -> bool:
        """Whether hidden states, rotary embeddings and position ids are all that a layer's attention needs."""
        module, mixer = self.side.parts.layers[layer], self.side.calls.mixers[layer]
        return not (any(takes(module, m) for m in ALONG) or mixer is None)

    def widths(self, run: Run) -> dict[int, Width]:
        """By layer what a stop leaves of a batch."""
        batch, found = run.batch, {}
        least, most = list(run.present), list(run.present)
        width = Width(run.columns.shape[1], run.columns.shape[1], run.padded)
        for layer in sorted(self.stops):
            before, exact = (least, most), True
            for pruner, stop in self.stops[layer]:
                assert stop.keep is not None
                asked = [resolve_keep(stop.keep, full) for full in batch.lengths]
                told = not (pruner.adaptive_count or pruner.joins_crops)
                exact &= told
                least = [min(n, k) if told else 0 for n, k in zip(least, asked, strict=True)]
                most = [min(n, k) if told else n for n, k in zip(most, asked, strict=True)]
            if not exact or (least, most) != before:  # else nothing goes, and padding stays where it is
                low, high = batch.left_of_rows(run.full, least), batch.left_of_rows(run.full, most)
                padded = width.padded if batch.single else low != high or min(low) < max(low)
                may_stay = not exact or most == before[1]
                width = Width(
                    min(width.least, max(low)), width.most if may_stay else min(width.most, max(high)), padded
                )
            found[layer] = width
        return found

    def cut(self, run: Run, layer: int, hidden: Tensor, width: Width, call: Call) -> Tensor:
        """What is left of `hidden` `[B, L, D]` before a layer's `call`, `[B, L', D]`. Traced by ``torch.compile``."""
        signals, rotary = [run.captured[signal][0] for signal in self.signals[layer]], None
        positions = mask = None
        if layer in self.looking:
            rotary, positions, mask = call.get("rotary"), call.get("positions"), call.get("mask")
        rotary = [rotary] if isinstance(rotary, Tensor) else list(rotary or ())
        left, run.columns, run.slots, run.rope_columns = torch.ops.vtc.stop(
            hidden, signals, rotary, positions, mask, width.least, width.most, layer, self.number
        )
        run.memo = {}
        return left

    @torch.compiler.disable
    def choose(
        self, hidden: Tensor, signals: list[Tensor], given: dict[str, Any], width: tuple[int, int], layer: int
    ) -> tuple[Any, ...]:
        """What the operator does: ask the methods, and note what is left.

        Where a method looks ahead into the layer, its call is `given` what goes along all columns.
        """
        run = self.local.run
        if run is None:
            trip(f"a compiled graph prunes before decoder layer {layer} where no forward of a prompt is under way")
        place, before = run.current(), hidden
        for signal, value in zip(self.signals[layer], signals, strict=True):
            value = finished(run, signal, value) if isinstance(signal, DecoderTransition) else value
            run.captured[signal] = value, place
        module = self.side.parts.layers[layer]
        call = Call(signature_of(module), (), {})
        for meaning, value in given.items():
            if value is not None:
                call.put(meaning, value)
        hidden = self.side.prune_before(run, layer, module, hidden, call)
        if not width[0] <= run.columns.shape[1] <= width[1]:
            trip(f"the stop before decoder layer {layer} left {run.columns.shape[1]} columns, and not {width}")
        self.book(layer, hidden)
        # an operator's results are tensors of their own, and lie as it was said
        left = hidden.clone() if hidden is before else hidden.contiguous()
        return left, run.columns.clone(), run.slots.clone(), run.rope_columns.clone()
