"""Decoding steps that need nothing of vtc but another mask, so that they cost what the stock model's cost.

One new token a row in plain causal layers: each layer then sees all that its cache holds but padding, as the stock
model does that was given so many tokens. So within such a step the cache shows stock layers, on the same keys and
values, and the text model is given the padding of the columns that are held, or no mask. The first step behind a
prefill takes the long way, which finds out whether those behind it are such; they need no hook of any layer, and which
tokens the new columns are is written down only when somebody asks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.models.stock.attention_api import additive, attention_kind
from vtc.models.stock.call_arguments import Call, asks_attentions, gives_attentions
from vtc.models.stock.transformers_api import plain_cache
from vtc.models.stock.tripwire import held

from .kv_cache import as_stock, first_columns
from .slot_layer import Guard, SlotLayer

# of a cache
STEADY = "_vtc_steady"
PADDED = "_vtc_padded"  # whether any forward of several columns brought padding
MASKS = ("sdpa", "eager")  # implementations whose masks are made of a padding mask in the way that is known
AHEAD = 64  # columns that a mask is made for at once


class Steady:
    """What is known of the steps on one cache; a deep copy of the cache starts without.

    Parameters
    ----------
    cache : Cache
        The cache.
    kind : str
        The attention implementation under which its steps were found to be such.
    limit : int or None
        The number of tokens up to which no window is exceeded.
    lm : nn.Module
        The text model: under another configuration its steps may be others.

    Attributes
    ----------
    first : SlotLayer or DynamicLayer
        The cache's first layer with columns, which text models ask how long the past is.
    handed_on : set of bool
        Of steps that need neither a mask nor other positions, whatever comes: whether the composite model was seen to
        hand on to the text model as it is that there is a mask, and that there is none.
    """

    def __init__(self, cache: Any, kind: str, limit: int | None, lm: Any):
        self.kind, self.limit = kind, limit
        # for every token: to read one attribute of a configuration takes longer than to compare all of them
        self.config, self.now = lm.config, vars(lm.config)
        self.then = dict(self.now)
        self.cache: Any = None  # within a step only: a cache is let go as soon as nobody else holds it
        self.guard = Guard()  # opened within a step: the first layer takes a column that nobody announced
        self.layers, first = cache.layers, first_columns(cache)
        self.first = cache.layers[first]
        self.guarded = isinstance(self.first, SlotLayer)
        self.stock = [layer if i == first else as_stock(layer) for i, layer in enumerate(cache.layers)]
        for layer in cache.layers:
            if isinstance(layer, SlotLayer):
                layer.guard = self.guard
        self.padding: tuple[Any, Tensor] | None = None
        self.handed_on: set[bool] = set()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(None), ()

    @property
    def shift(self) -> Tensor | None:
        """`[B]`, how far positions go back (compact positions), or None where they do not."""
        return getattr(self.first, "shift", None)

    def serves(self, lm: Any, cache: Any, call: Call, asked: Any) -> bool:
        """Whether this call of the text model is such a step; `asked` is the mask that the caller gave."""
        embeds = call.get("embeds")
        return (
            isinstance(embeds, Tensor)
            and embeds.shape[1] == 1
            and of_padding(asked)
            and call.get("use cache") is not False
            and (self.shift is None or call.get("positions") is not None)
            and not lm.training
            and cache.layers is self.layers
            and getattr(self.first, "guard", self.guard) is self.guard  # else it was reset
            and (self.limit is None or self.first.get_seq_length() < self.limit)
            and lm.config is self.config
            and self.now == self.then
            and not asks_attentions(call)
        )

    def serves_whole(self, lm: Any, cache: Any, asked: Any) -> bool:
        """Whether a call of the composite model that stores one token a row is such a step, and needs no mask at all.

        The same in one piece: behind a whole model's weights each function that is called is read from memory anew.
        """
        return (
            (asked is not None) in self.handed_on
            and (asked is None or (isinstance(asked, Tensor) and asked.dim() == 2))
            and cache.layers is self.layers
            and (self.first.guard is self.guard if self.guarded else True)
            and not lm.training
            and lm.config is self.config
            and self.now == self.then
        )

    def begin(self, cache: Any, call: Call, asked: Any) -> None:
        """Prepare the call of the text model; `asked` is the mask that the caller gave."""
        shift, embeds, given = self.shift, call.get("embeds"), call.get("mask")
        if given is asked and shift is None and self.limit is None and not getattr(self.first, "padded", False):
            self.handed_on.add(asked is not None)
        mask: Any = self._mask(embeds.device) if getattr(self.first, "padded", False) else None
        if isinstance(given, dict):  # the composite model made them already: by kind of layer, and in full
            if mask is not None:
                mask = mask[:, None, None]
                mask = additive(mask, embeds.dtype) if self.kind == "eager" else mask
            mask = dict.fromkeys(given, mask)
        call.put("mask", mask)
        if shift is not None:  # the caller counts on from the original ones
            call.put("positions", call.get("positions") - shift[:, None].to(embeds.device))
        self.open(cache)

    def open(self, cache: Any) -> None:
        """Let the cache show stock layers."""
        self.cache, self.guard.open = cache, True
        cache.layers = self.stock

    def end(self) -> None:
        """The step is over, or has failed."""
        self.cache.layers = self.layers
        self.cache, self.guard.open = None, False

    def _mask(self, device: torch.device) -> Tensor:
        """`[B, K]` bool: which of the columns that are held, and the new one, are no padding."""
        columns, source = self.first.physical() + 1, self.first.source
        if self.padding is None or self.padding[0] is not source or self.padding[1].shape[1] < columns:
            real = (self.first.held_slots() >= 0).to(device)
            self.padding = self.first.source, torch.nn.functional.pad(real, (0, AHEAD), value=True)
        return self.padding[1][:, :columns]


def of_padding(mask: Any) -> bool:
    """Whether a caller's mask tells padding only, if there is one."""
    return mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)


def steady_of(cache: Any) -> Steady | None:
    """What is known of a cache; None: its steps take the long way."""
    return getattr(cache, STEADY, None)


def forget_steady(cache: Any) -> None:
    """Before anything else happens to a cache."""
    delattr(cache, STEADY)


def note_steady(lm: Any, run: Any) -> None:
    """Mark the cache of a forward that is over, if the steps behind it are steady."""
    cache = run.cache
    if not plain_cache(cache):
        return
    if run.full > 1:
        setattr(cache, PADDED, getattr(cache, PADDED, False) or run.came_padded)
        return
    if run.batch.spans or run.padded or not run.as_stock or run.deepstack is not None or gives_attentions(lm.config):
        return
    if len(run.attending) != len(cache.layers):
        return
    widths = {held(cache, i) for i in range(len(cache.layers))}
    kind = attention_kind(lm.config)
    if run.masked:
        if len(widths) > 1 or kind not in MASKS or not run.padding_only or not _all_alike(cache.layers):
            return
    # layers that nothing was pruned before tell nothing of padding, where a text model gets the caller's mask
    elif getattr(cache, PADDED, True) or (run.masks_made and len(widths) > 1):
        return
    if None in widths:
        return
    windows = [window for window in run.windows or () if window is not None]
    # one less than the window, where a text model begins to make masks
    setattr(cache, STEADY, Steady(cache, kind, min(windows) - 1 if windows else None, lm))


def _all_alike(layers: list[Any]) -> bool:
    """Whether all layers of a cache hold the same tokens, and know which."""
    pruned = all(isinstance(layer, SlotLayer) and layer.has_slots for layer in layers)
    return pruned and len({(layer.history, layer.padded) for layer in layers}) == 1
