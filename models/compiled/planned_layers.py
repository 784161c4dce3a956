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
from vtc.models.cache.slot_layer import PromptLayer
from vtc.models.language.column_arguments import ALONG, cut_along, pick_columns
from vtc.models.language.decoder_hooks import DecoderSide
from vtc.models.language.decoder_signals import changes
from vtc.models.language.deepstack import Deepstack
from vtc.models.language.forward_state import Run
from vtc.models.language.masks import gather_mask, keeps_pattern, slot_mask
from vtc.models.stock.attention_api import attention_kind
from vtc.models.stock.attention_windows import ATTENTION
from vtc.models.stock.call_arguments import Call, call_of, signature_of, takes
from vtc.models.stock.hooks_outside_checkpoint import LATER
from vtc.models.stock.sleeping_hooks import SleepingHooks
from vtc.models.stock.transformers_api import Cache

from .traced_stops import TracedStops, Width

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
    behind : Width or None
        The columns that a stop within the same graph left: columns, rope and mask are of these.
    window : int or None
        The layer's sliding window, behind such a stop.
    width : Width or None
        What a stop before this very layer leaves.
    """

    narrowed: bool
    mask: Tensor | None
    full: int | None
    columns: Tensor
    keys: Tensor
    rope: Tensor | None
    deepstack: Deepstack | None
    behind: Width | None = None
    window: int | None = None
    width: Width | None = None


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
            traced = TracedStops(side, self.book)
            self.traced = traced if traced.fit else None
        side.plan = self.plan
        self.signatures = [signature_of(layer) for layer in parts.layers]
        for signature in self.signatures:  # names are looked up once, and not while a graph is traced
            for meaning in ("hidden", "mask", "rotary", "positions", *ALONG):
                signature.name(meaning)
        self.changed, self.sublayers = side.changed, {p: signature_of(module) for p, module in side.sublayers()}
        for signature in self.sublayers.values():
            signature.name("hidden")
        self.asks_positions = [m is not None and takes(m, "positions") for m in self.calls.mixers]
        own = all(source == i for i, source in enumerate(self.sources))
        self.plain = own and self.windows.streams == 1 and set(self.windows.kinds) == {ATTENTION}

    def behind(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """`hook` of the text model, and the plan of its first layers: what runs where ``torch.compile`` traces."""

        def run(lm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            changed = hook(lm, args, kwargs)
            call = call_of(lm, *(changed or (args, kwargs)))
            self.plan(0, call.get("embeds"), call.get("mask"))
            return changed

        return run

    def plan(self, first: int, hidden: Tensor, mask: Any = None) -> None:
        """Work out the layers from `first` on, which `hidden` `[B, L, D]` enter; `mask` is the text model's, if any."""
        run = self.local.run
        self.local.planned, self.local.traced = {}, False
        if run is None or attention_kind(self.lm.config) not in TRACEABLE or (run.past and not run.mask_hidden):
            return
        end = first if first in self.stops else self.book(first, hidden)
        run.memo = {}  # its keys name objects of this forward: a graph that sees them would be traced anew each time
        if first == 0 and end in self.stops and self.traced is not None and self._can_trace(run):
            widths = self.traced.widths(run)
            if all(width.least > 1 for width in widths.values()):  # one query would be another kind of attention
                self._plan_stops(run, end, widths)
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

    def _can_trace(self, run: Run) -> bool:
        """Whether stops may be operators of the graph: masks behind them are of the columns that they leave alone."""
        return (
            self.plain
            and not (run.past or run.asking is not None)
            and bool(run.batch.spans)
            and not torch.is_grad_enabled()
            and not any(isinstance(held, PromptLayer) for held in self._held(run))  # windows of another kind
        )

    def _held(self, run: Run) -> list[Any]:
        """The cache's layers, made before a graph is traced that knows them; none without a cache."""
        return [slot_layer(run.cache, i) for i in range(self.depth)] if isinstance(run.cache, Cache) else []

    def _plan_stops(self, run: Run, first: int, widths: dict[int, Width]) -> None:
        planned = self.local.planned
        assert planned is not None
        self.local.traced = True
        full, windows, left = None if run.mask_hidden else run.full, self.windows.now(), widths[first]
        for i in range(first, self.depth):
            deepstack = run.deepstack if run.deepstack is not None and i in run.deepstack.features else None
            left, window = widths.get(i, left), windows[i]
            if run.cache is not None and window is not None and run.full <= window:
                window = None  # nothing is as far back
            planned[i] = Planned(
                True, None, full, run.columns, run.columns, None, deepstack, left, window, widths.get(i)
            )
        behind = self._behind(run)
        planned[self.depth] = behind and replace(behind, behind=left)

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
            hidden = self.traced.cut(run, i, hidden, plan.width, call)
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
        run, device = self.local.run, hidden.device
        columns, keys = plan.columns, plan.keys
        if plan.behind is not None and run is not None:
            columns, keys = run.columns, run.slots
        if plan.full is not None and keeps_pattern(given, plan.full):
            mask = gather_mask(given, columns.to(device), self.lm.config, keys.to(device))
        elif plan.behind is not None:
            slots = keys.to(device)
            mask = slot_mask(self.lm.config, slots, slots, hidden.dtype, plan.behind.padded, plan.window)
        elif mask is not None and mask.is_floating_point():
            mask = mask.to(hidden.dtype)
        call.put("mask", mask)

    def transition(
        self, place: tuple[int, str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Note what the sublayer at `place` does to tokens; ``LATER`` where no operator will read it."""
        run = self.local.run
        if run is None or not self.local.traced:
            return None if run is None else LATER
        before = args[0] if args else Call(self.sublayers[place], args, kwargs).get("hidden")
        seen = changes(before, output[0] if isinstance(output, tuple) else output)
        run.captured.update((signal, (seen, run.columns)) for signal in self.changed[place])
        return None

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
