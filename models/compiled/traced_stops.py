"""A stop of the decoder stage within a graph of ``torch.compile``: the method is one operator, and the graph goes on.

A graph that breaks inside the text model's loop over its layers leaves the whole loop to the interpreter. So where it
is known beforehand how many columns a stop leaves, choosing is an operator that the compiler does not look into: hidden
states and what else the method reads go in, and which columns stay comes out.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtc.models.language.column_arguments import ALONG
from vtc.models.language.decoder_hooks import DecoderSide
from vtc.models.language.decoder_signals import resolve
from vtc.models.language.forward_state import Run
from vtc.models.stock.call_arguments import Call, signature_of, takes
from vtc.models.stock.tripwire import trip
from vtc.pruners.base import Pruner, resolve_keep
from vtc.pruners.signals import AttentionAhead, DecoderHidden, DecoderSignal, DecoderTransition, Signal

MADE_HERE = (AttentionAhead, DecoderHidden)  # by the operator, of the hidden states that it is given

_numbers = itertools.count()
_known: weakref.WeakValueDictionary[int, TracedStops] = weakref.WeakValueDictionary()


@torch.library.custom_op(
    "vtc::stop",
    mutates_args=(),
    schema="(Tensor hidden, Tensor[] signals, int width, int layer, int model) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _stop(hidden, signals, width, layer, model):  # type: ignore[no-untyped-def]
    return _known[model].choose(hidden, signals, width, layer)


@_stop.register_fake
def _(hidden, signals, width, layer, model):  # type: ignore[no-untyped-def]
    return tuple(hidden.new_empty(hidden.shape[0], width, dtype=torch.long) for _ in range(4))


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
        self.signals: dict[int, tuple[Signal, ...]] = {}
        self.looking: set[int] = set()  # stops where a method looks ahead into the layer
        for i, entries in self.stops.items():
            read = [resolve(s, i) for pruner, stop in entries for s in pruner.signals_at(stop)]
            if all(self._fits(i, pruner, read) for pruner, _ in entries):
                seen = (s for s in read if isinstance(s, DecoderSignal) and not isinstance(s, MADE_HERE))
                self.signals[i] = tuple(dict.fromkeys(seen))
                if any(isinstance(s, AttentionAhead) for s in read):
                    self.looking.add(i)

    def _fits(self, layer: int, pruner: Pruner, read: list[Signal]) -> bool:
        """Whether a method leaves a number that is known beforehand, and what it reads is there then."""
        told = not (pruner.adaptive_count or pruner.merges or pruner.joins_crops)
        odd = (
            isinstance(s, DecoderTransition)
            or (isinstance(s, DecoderHidden) and s.layer != layer - 1)
            or (isinstance(s, AttentionAhead) and not self._can_look(layer))
            for s in read
        )
        return told and not any(odd)

    def _can_look(self, layer: int) -> bool:
        """Whether hidden states and rotary embeddings are all that a layer's attention needs."""
        module, mixer = self.side.parts.layers[layer], self.side.calls.mixers[layer]
        return not (any(takes(module, m) for m in ALONG) or mixer is None or takes(mixer, "positions"))

    def width(self, run: Run, layer: int, present: list[int]) -> tuple[int, list[int]]:
        """How many columns the stop before `layer` leaves of a batch of one row, and how many tokens of each span."""
        for _, stop in self.stops[layer]:
            assert stop.keep is not None
            present = [
                min(n, resolve_keep(stop.keep, full)) for n, full in zip(present, run.batch.lengths, strict=True)
            ]
        return run.batch.width_after(run.full, present, False, False)[0], present

    def cut(self, run: Run, layer: int, hidden: Tensor, width: int, call: Call) -> Tensor:
        """Which columns of `hidden` `[B, L, D]` stay before a `call` of a layer, `[B, width]`. Traced by
        ``torch.compile``.
        """
        signals = [run.captured[signal][0] for signal in self.signals[layer]]
        if layer in self.looking:
            rotary = call.get("rotary")
            signals += [rotary] if isinstance(rotary, Tensor) else rotary or []
        order, run.columns, run.slots, run.rope_columns = torch.ops.vtc.stop(hidden, signals, width, layer, self.number)
        run.memo = {}
        return order

    @torch.compiler.disable
    def choose(self, hidden: Tensor, signals: list[Tensor], width: int, layer: int) -> tuple[Any, ...]:
        """What the operator does: ask the methods, and note what is left.

        Behind the signals come the rotary embeddings of all columns, where a method looks ahead into the layer.
        """
        run = self.local.run
        if run is None:
            trip(f"a compiled graph prunes before decoder layer {layer} where no forward of a prompt is under way")
        place = run.current()
        seen = self.signals[layer]
        run.captured.update((signal, (value, place)) for signal, value in zip(seen, signals, strict=False))
        module, before = self.side.parts.layers[layer], run.columns
        rotary = signals[len(seen) :]
        call = Call(signature_of(module), (), {})
        if rotary:
            call.put("rotary", tuple(rotary) if len(rotary) > 1 else rotary[0])
        hidden = self.side.prune_before(run, layer, module, hidden, call)
        if run.columns.shape[1] != width:
            trip(f"the stop before decoder layer {layer} left {run.columns.shape[1]} columns, and not {width}")
        self.book(layer, hidden)
        # an operator's results are tensors of their own
        return run.stand_in(before), run.columns.clone(), run.slots.clone(), run.rope_columns.clone()
