"""What decoder layers are given between two stops, worked out ahead, so that ``torch.compile`` can trace the rest.

Bookkeeping of the layers (which tokens a cache layer is about to hold, masks, what the tripwire expects) needs nothing
of the layers themselves. Under ``torch.compile`` it is done for all layers up to the next stop at once, in the function
that breaks the graph anyway; what is left to a layer's hook is a few tensor operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.cache.kv_cache import is_pruned, slot_layer
from vtc.models.language.column_arguments import ALONG, cut_along, pick_columns
from vtc.models.language.decoder_hooks import DecoderSide
from vtc.models.language.deepstack import Deepstack
from vtc.models.language.forward_state import Run, gather_columns
from vtc.models.language.masks import gather_mask, keeps_pattern
from vtc.models.stock.attention_api import attention_kind
from vtc.models.stock.attention_windows import ATTENTION
from vtc.models.stock.call_arguments import Call, call_of, signature_of, takes
from vtc.models.stock.hooks_outside_checkpoint import LATER
from vtc.models.stock.sleeping_hooks import SleepingHooks
from vtc.models.stock.transformers_api import Cache

from .traced_stops import TracedStops

TRACEABLE = ("sdpa", "eager")  # implementations whose masks are tensors, or none


@dataclass
class Planned:
    """What one layer is given.

    Attributes
    ----------
    narrowed : bool
        Whether the layer is given masks and columns of ours; else only `deepstack`.
    mask : Tensor or None
        Unless the text model's own mask has a pattern.
    full : int or None
        The length over which a mask of the text model's is one of such a pattern; None: it means nothing.
    columns, keys : Tensor
        `[B, L]`: what is left of such a mask.
    rope : Tensor or None
        `[B, L]`: what is left of everything else that goes along; None: all.
    deepstack : Deepstack or None
        What is added before this layer.
    behind : bool
        Whether columns and rope are those that a stop within the same graph left.
    width : int or None
        The columns that a stop before this very layer leaves.
    """

    narrowed: bool
    mask: Tensor | None
    full: int | None
    columns: Tensor
    keys: Tensor
    rope: Tensor | None
    deepstack: Deepstack | None
    behind: bool = False
    width: int | None = None


class Planner:
    """Plans the layers of a text model.

    Parameters
    ----------
    side : DecoderSide
        The hooks of the layers; what they leave to be planned is planned here.
    hooks : SleepingHooks
        What is set on the layers: a graph holds them, or is traced anew.
    """

    def __init__(self, side: DecoderSide, hooks: SleepingHooks):
        parts, self.hooks = side.parts, hooks
        self.lm, self.windows, self.sources, self.calls, self.local = (
            parts.lm,
            side.windows,
            side.sources,
            side.calls,
            side.local,
        )
        # layers before which something is done that can't be planned, unless it is among the traced stops
        self.stops, self.depth = frozenset({*side.stops, *(i + 1 for i in side.hidden)}), len(parts.layers)
        self.traced: TracedStops | None = None
        if set(side.stops) == self.stops:
            self.traced = TracedStops(side, self.book)
        side.plan = self.plan
        self.signatures = [signature_of(layer) for layer in parts.layers]
        for signature in self.signatures:  # names are looked up once, and not while a graph is traced
            for meaning in ("hidden", "mask", "rotary", "positions", *ALONG):
                signature.name(meaning)
        self.asks_positions = [m is not None and takes(m, "positions") for m in self.calls.mixers]
        own = all(source == i for i, source in enumerate(self.sources))
        self.plain = own and self.windows.streams == 1 and set(self.windows.kinds) == {ATTENTION}

    def behind(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """`hook` of the text model, and the plan of its first layers: what runs where ``torch.compile`` traces."""

        def run(lm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self.hooks.stay()
            changed = hook(lm, args, kwargs)
            call = call_of(lm, *(changed or (args, kwargs)))
            self.plan(0, call.get("embeds"), call.get("mask"))
            return changed

        return run

    def plan(self, first: int, hidden: Tensor, mask: Any = None) -> None:
        """Work out the layers from `first` on, which `hidden` `[B, L, D]` enter; `mask` is the text model's, if any."""
        run = self.local.run
        self.local.planned = {}
        if run is None or attention_kind(self.lm.config) not in TRACEABLE or (run.past and not run.mask_hidden):
            return
        end = first if first in self.stops else self.book(first, hidden)
        run.memo = {}  # its keys name objects of this forward: a graph that sees them would be traced anew each time
        if first == 0 and end in self.stops and self._can_trace(run, mask):
            self._plan_stops(run, end)
        elif end == self.depth:
            self.local.planned[self.depth] = self._behind(run)

    def book(self, first: int, hidden: Tensor) -> int:
        """Plan the layers from `first` to the next stop, and note what they are about to be given; where that is."""
        run, planned = self.local.run, self.local.planned
        assert run is not None
        assert planned is not None
        for i in range(first, self.depth):
            if (i in self.stops and i > first) or self.sources[i] != i or self.windows.kinds[i] != ATTENTION:
                return i
            planned[i] = self._one(run, i, hidden)
        return self.depth

    def _can_trace(self, run: Run, mask: Any) -> bool:
        """Whether stops may be operators of the graph: no mask is ever needed, and all widths are known."""
        return (
            self.traced is not None
            and self.plain
            and attention_kind(self.lm.config) == "sdpa"
            and (run.mask_hidden or mask is None or (isinstance(mask, Tensor) and mask.dim() == 2))
            and not any((run.past, run.padded, run.asking is not None, *self.windows.now()))
            and run.batch.single
            and bool(run.batch.spans)
            and not torch.is_grad_enabled()
        )

    def _plan_stops(self, run: Run, first: int) -> None:
        planned, traced, present = self.local.planned, self.traced, run.present
        assert planned is not None
        assert traced is not None
        for i in range(first, self.depth):
            if isinstance(run.cache, Cache):
                slot_layer(run.cache, i)  # before a graph is traced that knows the layers of the cache
            width = None
            if i in self.stops:
                if i not in traced.signals:
                    return
                width, present = traced.width(run, i, present)
            deepstack = run.deepstack if run.deepstack is not None and i in run.deepstack.features else None
            planned[i] = Planned(True, None, None, run.columns, run.columns, None, deepstack, True, width)
        behind = self._behind(run)
        planned[self.depth] = behind and replace(behind, behind=True)

    def _one(self, run: Run, i: int, hidden: Tensor) -> Planned | None:
        if run.checks is not None:
            run.checks.expect(i, run.cache, hidden.shape[-2])
        run.trail[i] = (run.columns, None)
        run.attending.append(i)
        run.masks_made = True  # perhaps; nobody has seen it
        narrowed = run.static is None and (run.pruned or is_pruned(run.cache, i))
        mask = None
        if narrowed:
            mask = self.calls.mask(run, i, hidden, None)
            run.as_stock &= run.mask_hidden
        deepstack = run.deepstack if run.deepstack is not None and i in run.deepstack.features else None
        if not narrowed and deepstack is None:
            return None
        full = None if run.mask_hidden else run.full
        rope = run.rope_columns if run.pruned and run.rope_moved else None
        return Planned(narrowed, mask, full, run.columns, run.key_slots, rope, deepstack)

    def _behind(self, run: Run) -> Planned | None:
        """What is added behind the last layer."""
        if run.deepstack is None or self.depth not in run.deepstack.features:
            return None
        return Planned(False, None, None, run.columns, run.key_slots, None, run.deepstack)

    def before(self, i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A layer's pre-hook as planned; ``LATER`` where there is no plan for it. Traced by ``torch.compile``."""
        planned = self.local.planned
        if planned is None:
            return None if self.local.run is None else LATER
        if i not in planned:
            return None if self.local.run is None else LATER
        plan = planned[i]
        if plan is None:
            return None
        call = Call(self.signatures[i], args, kwargs)
        hidden, columns, run = call.get("hidden"), plan.columns, self.local.run
        if plan.behind and run is not None:
            columns = run.columns
        if plan.deepstack is not None:
            hidden = plan.deepstack.added(i, hidden, columns)
        if plan.width is not None and run is not None and self.traced is not None:
            hidden = gather_columns(hidden, self.traced.cut(run, i, hidden, plan.width, call), -2)
        call.put("hidden", hidden)
        if plan.narrowed:
            self._narrow(plan, run.rope_columns if plan.behind and run is not None else plan.rope, i, call, hidden)
        return call.args, call.kwargs

    def _narrow(self, plan: Planned, rope: Tensor | None, i: int, call: Call, hidden: Tensor) -> None:
        given, mask, positions = call.get("mask"), plan.mask, call.get("positions")
        if rope is not None:
            if call.get("rotary") is not None:
                call.put("rotary", pick_columns("rotary", call.get("rotary"), rope))
            cut_along(call, rope)
        if not isinstance(positions, Tensor) or not self.asks_positions[i]:
            positions = None
        elif rope is not None:
            positions = pick_columns("positions", positions, rope)
        call.put("positions", positions)
        if plan.full is not None and keeps_pattern(given, plan.full):
            device = hidden.device
            mask = gather_mask(given, plan.columns.to(device), self.lm.config, plan.keys.to(device))
        elif mask is not None and mask.is_floating_point():
            mask = mask.to(hidden.dtype)
        call.put("mask", mask)

    def after(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The last layer's hook as planned."""
        planned = self.local.planned
        if planned is None or self.depth not in planned:
            return None if self.local.run is None else LATER
        plan = planned[self.depth]
        if plan is None or plan.deepstack is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        run = self.local.run
        columns = run.columns if plan.behind and run is not None else plan.columns
        changed = plan.deepstack.added(self.depth, hidden, columns)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed
