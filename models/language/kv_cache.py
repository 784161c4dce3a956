"""KV-cache layers that know which tokens they hold.

A pruned layer holds fewer columns than the sequence has tokens. ``get_seq_length`` keeps answering with the LOGICAL
length, which ``generate``, Qwen's rope code and a second turn need; ``get_mask_sizes`` answers with the physical one.
A recurrent layer holds one state of all tokens that went through it, so it needs no slots and stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.models.stock.transformers_api import (
    NOTHING,
    STATE,
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    holds_columns,
    new_cache,
    versions,
)
from vtc.models.stock.tripwire import check_update


class SlotLayer:
    """Mixin: every physical column carries its slot.

    Attributes
    ----------
    slots : Tensor or None
        `[B, columns]` int64, the original index in the sequence of each column ever pushed; -1 is padding.
    shift : Tensor or None
        `[B]` original minus used position of the last token (compact positions; cache layer 0 only).
    dropped : int
        Logical minus physical columns.
    padded : bool
        Whether any slot is -1, or rows hold columns for different tokens.
    history : tuple
        The pruning steps that the columns went through: layers with equal history hold equal slots.
    pending : int or None
        Columns whose slots are known and that attention is about to store.
    """

    slots: Tensor | None = None
    shift: Tensor | None = None
    dropped: int = 0
    padded: bool = False
    history: tuple[int, ...] = ()
    pending: int | None = None
    # of transformers' layers
    keys: Tensor | None
    values: Tensor | None
    is_initialized: bool

    def physical(self) -> int:
        """Columns really held."""
        return self.keys.shape[-2] if self.is_initialized and self.keys is not None and self.keys.numel() else 0

    def held_slots(self) -> Tensor | None:
        """Slots of the columns really held (a sliding layer forgets the oldest), `[B, physical]`."""
        n = self.physical()
        return self.slots[:, self.slots.shape[1] - n :] if n and self.slots is not None else None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store new columns.

        Raises
        ------
        RuntimeError
            If they are not those that were announced: the model is no longer wrapped, or is not understood.
        """
        if self.slots is not None:
            check_update(self.pending, key_states)
            self.pending = None
        return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[misc]

    def get_seq_length(self, *args: Any) -> int:
        """Logical length: physical plus dropped columns."""
        n = super().get_seq_length(*args)  # type: ignore[misc]
        return n + self.dropped if n else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Physical key length and the offset that makes it end at the logical length."""
        n = self.physical()
        return n + query_length, (self.get_seq_length() - n if n else 0)

    def _rows(self, move: Any) -> None:
        self.slots = None if self.slots is None else move(self.slots)
        self.shift = None if self.shift is None else move(self.shift)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the batch, slots included."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._rows(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat the batch, slots included."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._rows(lambda t: t.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Select from the batch, slots included."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._rows(lambda t: t[indices.to(t.device)])

    def crop(self, amount: int) -> None:
        """Forget the newest tokens.

        A positive `amount` is the LOGICAL length to keep (older transformers), a negative one how many to remove.
        """
        remove = self.get_seq_length() - amount if amount > 0 else -amount
        n, window = self.physical(), getattr(self, "sliding_window", None)
        past_window = window is not None and self.cumulative_length >= window  # type: ignore[attr-defined]
        if past_window and not getattr(self, "record_past", False):
            if remove > 0:
                raise RuntimeError("this sliding cache layer already forgot states that cropping would need")
            return
        if remove > 0 and self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[..., : n - remove, :], self.values[..., : n - remove, :]
            if self.slots is not None:
                self.slots = self.slots[:, :-remove]
            if window is not None:
                self.cumulative_length -= remove  # type: ignore[attr-defined]
        if past_window and window is not None and self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[:, :, -window + 1 :], self.values[:, :, -window + 1 :]

    def reset(self) -> None:
        """Forget everything."""
        super().reset()  # type: ignore[misc]
        self.slots, self.shift, self.dropped, self.padded, self.history = None, None, 0, False, ()
        self.pending = None


class PrunedDynamicLayer(SlotLayer, DynamicLayer):
    """``DynamicLayer`` with slots."""


class PrunedSlidingLayer(SlotLayer, DynamicSlidingWindowLayer):
    """``DynamicSlidingWindowLayer`` with slots; its window counts kept tokens, a superset that the slot mask cuts."""


TWINS: dict[type, type] = {DynamicLayer: PrunedDynamicLayer, DynamicSlidingWindowLayer: PrunedSlidingLayer}


def refuse_unsupported(cache: Cache) -> None:
    """Raise NotImplementedError for caches whose layers cannot differ in length."""
    odd = _unsupported(cache)
    if odd:
        raise NotImplementedError(
            f"visual-token pruning needs a DynamicCache; this is {type(cache).__name__} with {', '.join(odd)}, which "
            "can't hold a different number of tokens per layer. Leave out cache_implementation / past_key_values (the "
            "default is a DynamicCache), or call vtc.restore(model) first."
        )


def refuse_layers(lm: Any) -> None:
    """Raise NotImplementedError if the cache that a text model makes has layers that pruning can't follow."""
    odd = _unsupported(new_cache(lm.config))
    if odd:
        raise NotImplementedError(
            f"{type(lm).__name__} keeps {', '.join(odd)} in its cache, and vtc does not know how to leave tokens out "
            f"of that. Use a model whose layers keep keys and values, or a state, and nothing beside them. {versions()}"
        )


def _unsupported(cache: Cache) -> list[str]:
    """Names of the classes of a cache's layers that vtc can't work with."""
    found = {type(layer) for layer in cache.layers}
    replica = getattr(cache, "layer_class_to_replicate", None)
    found |= {replica} if isinstance(replica, type) else set()
    known = (STATE, NOTHING, *TWINS)
    return sorted(t.__name__ for t in found if not issubclass(t, SlotLayer) and t not in known)


def first_columns(cache: Any) -> int:
    """Number of the first layer of a cache that holds columns: the one that text models ask how long the past is."""
    return next((i for i, layer in enumerate(cache.layers) if holds_columns(layer)), 0)


def is_pruned(cache: Any, layer: int | None = None) -> bool:
    """Whether any layer (or layer number `layer`) of `cache` carries slots."""
    if not isinstance(cache, Cache):
        return False
    layers = cache.layers if layer is None else cache.layers[layer : layer + 1]
    return any(isinstance(one, SlotLayer) and one.slots is not None for one in layers)


def slot_layer(cache: Cache, index: int) -> Any:
    """Layer `index` of `cache` as a slot layer, replaced in place by its twin when it is not one yet (state kept)."""
    replica = getattr(cache, "layer_class_to_replicate", None)
    while replica is not None and len(cache.layers) <= index:
        cache.layers.append(replica())
    layer = cache.layers[index]
    if isinstance(layer, SlotLayer):
        return layer
    twin: Any = TWINS[type(layer)]
    new = twin.__new__(twin)  # assigning __class__ fails: 'object layout differs'
    new.__dict__.update(layer.__dict__)
    cache.layers[index] = new
    return new


def note_padding(cache: Cache, valid: Tensor) -> None:
    """Tell the layers of a cache that nothing was pruned from which of its tokens, `valid` `[B, past]`, are real."""
    for i in filter(lambda i: holds_columns(cache.layers[i]), range(len(cache.layers))):
        layer = slot_layer(cache, i)
        if n := layer.physical():
            past = valid.shape[1]
            slots = torch.arange(past - n, past, device=valid.device)
            layer.slots, layer.padded = torch.where(valid[:, past - n :], slots, -1), True


def seen_slots(layer: Any, new: Tensor, memo: dict[Any, Tensor]) -> Tensor:
    """`[B, K]` slots of all keys that an attention of the columns `new` sees: those that `layer` holds, and they."""
    n = layer.physical()
    if n and layer.slots is None:  # turned prunable after an unpruned turn
        length = layer.get_seq_length()
        layer.slots = torch.arange(length - n, length, device=new.device).expand(new.shape[0], -1)
    old = layer.held_slots()
    key = ("slots", n, layer.history, id(new))
    if key not in memo:
        memo[key] = new if old is None else torch.cat([old.to(new.device), new], 1)
    return memo[key]


def push_slots(layer: Any, new: Tensor, full: int, memo: dict[Any, Tensor]) -> Tensor:
    """Record that `layer` is about to hold the columns `new` of a forward over `full` tokens; gives ``seen_slots``."""
    layer.slots, layer.pending = seen_slots(layer, new, memo), new.shape[1]
    layer.dropped += full - new.shape[1]
    return layer.slots


class Peek:
    """What attention sees of a cache, without writing to it."""

    def __init__(self, cache: Cache):
        self.cache = cache

    def update(self, keys: Tensor, values: Tensor, index: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The keys of layer `index` with the new ones behind them; the values are the new ones only."""
        held: Any = self.cache.layers[index] if index < len(self.cache.layers) else None
        if held is None or not held.is_initialized or not held.keys.numel():
            return keys, values
        return torch.cat([held.keys.to(keys.device), keys], 2), values
