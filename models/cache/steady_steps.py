"""Decoding steps that need nothing of vtc but a hidden mask, so that they cost what the stock model's cost.

One new token a row, no padding, plain causal layers: each layer then sees all that its cache holds, which is what the
stock model does where it is given no mask. The first step behind a prefill takes the long way, where the masks that the
text model made by itself are compared with those that vtc makes. If they are the same, the steps behind it are steady:
no hook of a layer does anything, and which tokens the new columns are is written down only when somebody asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vtc.models.stock.attention_api import attention_kind
from vtc.models.stock.transformers_api import Cache, Call, asks_attentions
from vtc.models.stock.tripwire import held

from .kv_cache import first_columns
from .slot_layer import Guard, SlotLayer

# of a cache
STEADY = "_vtc_steady"
PADDED = "_vtc_padded"  # whether any forward of several columns brought padding


@dataclass
class Steady:
    """What is known of the steps on one cache.

    Attributes
    ----------
    kind : str
        The attention implementation under which masks were compared.
    guard : Guard
        Opened within a step: the cache's layers then take a column that nobody announced.
    first : Any
        The cache's layer that notes how far positions go back (compact positions).
    """

    kind: str
    guard: Guard
    first: Any

    @property
    def shift(self) -> Tensor | None:
        """`[B]`, or None where they do not."""
        return getattr(self.first, "shift", None)

    def serves(self, lm: Any, call: Call) -> bool:
        """Whether this call of the text model is such a step."""
        embeds, mask = call.get("embeds"), call.get("mask")
        return (
            isinstance(embeds, Tensor)
            and embeds.shape[1] == 1
            and (mask is None or (isinstance(mask, Tensor) and mask.dim() == 2))
            and call.get("use cache") is not False
            and (self.shift is None or call.get("positions") is not None)
            and not lm.training
            and attention_kind(lm.config) == self.kind
            and not asks_attentions(lm, call)
        )

    def begin(self, call: Call) -> None:
        """Prepare the call."""
        call.put("mask", None)  # ours would be none, and so is the one that the text model then makes
        shift = self.shift
        if shift is not None:  # the caller counts on from the original ones
            call.put("positions", call.get("positions") - shift[:, None].to(call.get("embeds").device))
        self.guard.open = True

    def end(self) -> None:
        """The step is over, or has failed."""
        self.guard.open = False


def steady_of(cache: Any) -> Steady | None:
    """What is known of a cache; None: its steps take the long way."""
    return getattr(cache, STEADY, None)


def forget_steady(cache: Any) -> None:
    """Before anything else happens to a cache."""
    delattr(cache, STEADY)


def note_steady(lm: Any, run: Any) -> None:
    """Mark the cache of a forward that is over, if the steps behind it are steady."""
    cache = run.cache
    if not isinstance(cache, Cache):
        return
    if run.full > 1:
        setattr(cache, PADDED, getattr(cache, PADDED, False) or run.came_padded)
        return
    if run.batch.spans or run.padded or not run.as_stock or run.deepstack is not None:
        return
    # layers that nothing was pruned before tell nothing of padding, where a text model gets the caller's mask
    if getattr(cache, PADDED, True) or len(run.attending) != len(cache.layers):
        return
    widths = {held(cache, i) for i in range(len(cache.layers))}
    if None in widths or (run.masks_made and len(widths) > 1):
        return
    guard = Guard()
    for layer in cache.layers:
        if isinstance(layer, SlotLayer):
            layer.guard = guard
    setattr(cache, STEADY, Steady(attention_kind(lm.config), guard, cache.layers[first_columns(cache)]))
