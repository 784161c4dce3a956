"""What decoder layers are given between two stops, worked out ahead, so that ``torch.compile`` can trace the rest.

Bookkeeping of the layers (which tokens a cache layer is about to hold, masks, what the tripwire expects) needs nothing
of the layers themselves. Under ``torch.compile`` it is done for all layers up to the next stop at once, in the function
that breaks the graph anyway; what is left to a layer's hook is a few tensor operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vtc.models.cache.kv_cache import is_pruned
from vtc.models.stock.attention_api import attention_kind
from vtc.models.stock.attention_windows import ATTENTION, Windows
from vtc.models.stock.hooks_outside_checkpoint import LATER
from vtc.models.stock.transformers_api import Call, signature_of, takes

from .column_arguments import ALONG, cut_along, pick_columns
from .deepstack import Deepstack
from .forward_state import Run
from .masks import gather_mask, keeps_pattern
from .narrowed_calls import LayerCalls
from .thread_state import Local

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
    """

    narrowed: bool
    mask: Tensor | None
    full: int | None
    columns: Tensor
    keys: Tensor
    rope: Tensor | None
    deepstack: Deepstack | None


class Planner:
    """Plans the layers of a text model.

    Parameters
    ----------
    lm : nn.Module
        The text model.
    layers : sequence of nn.Module
        Its layers.
    windows, sources, calls : Windows, list of int, LayerCalls
        See ``DecoderSide``.
    local : Local
        Per-thread state; its ``planned`` is written here.
    stops : iterable of int
        Layers before which something is done that can't be planned.
    """

    def __init__(
        self,
        lm: Any,
        layers: Sequence[nn.Module],
        windows: Windows,
        sources: list[int],
        calls: LayerCalls,
        local: Local,
        stops: Iterable[int],
    ):
        self.lm, self.windows, self.sources, self.calls, self.local = lm, windows, sources, calls, local
        self.stops, self.depth = frozenset(stops), len(layers)
        self.signatures = [signature_of(layer) for layer in layers]
        for signature in self.signatures:  # names are looked up once, and not while a graph is traced
            for meaning in ("hidden", "mask", "rotary", "positions", *ALONG):
                signature.name(meaning)
        self.asks_positions = [m is not None and takes(m, "positions") for m in calls.mixers]

    def plan(self, first: int, hidden: Tensor) -> None:
        """Work out the layers from `first` to the next stop, which `hidden` `[B, L, D]` enter."""
        run = self.local.run
        self.local.planned = {}
        if run is None or not self._can(run):
            return
        for i in range(first, self.depth):
            if i in self.stops or self.sources[i] != i or self.windows.kinds[i] != ATTENTION:
                return  # the layers behind it are planned then, or done one by one
            self.local.planned[i] = self._one(run, i, hidden)
        self.local.planned[self.depth] = self._behind(run)

    def _can(self, run: Run) -> bool:
        return attention_kind(self.lm.config) in TRACEABLE and (run.mask_hidden or not run.past)

    def _one(self, run: Run, i: int, hidden: Tensor) -> Planned | None:
        if run.checks is not None:
            run.checks.expect(i, run.cache, hidden.shape[-2])
        run.trail[i] = (run.columns, None)
        run.attending.append(i)
        run.masks_made = True  # perhaps; nobody has seen it
        narrowed = run.pruned or is_pruned(run.cache, i)
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
        hidden = call.get("hidden")
        if plan.deepstack is not None:
            hidden = plan.deepstack.added(i, hidden, plan.columns)
            call.put("hidden", hidden)
        if plan.narrowed:
            self._narrow(plan, i, call, hidden)
        return call.args, call.kwargs

    def _narrow(self, plan: Planned, i: int, call: Call, hidden: Tensor) -> None:
        given, mask, positions = call.get("mask"), plan.mask, call.get("positions")
        if plan.rope is not None:
            if call.get("rotary") is not None:
                call.put("rotary", pick_columns("rotary", call.get("rotary"), plan.rope))
            cut_along(call, plan.rope)
        if not isinstance(positions, Tensor) or not self.asks_positions[i]:
            positions = None
        elif plan.rope is not None:
            positions = pick_columns("positions", positions, plan.rope)
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
        changed = plan.deepstack.added(self.depth, hidden, plan.columns)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed
