"""KV caches whose layers know which tokens they hold (``slot_layer``): made of stock ones, read and written."""

from __future__ import annotations

from collections.abc import Iterable
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
    keeps_prompt,
    new_cache,
    versions,
)

from .slot_layer import SlotLayer, prompt_twin


class PrunedDynamicLayer(SlotLayer, DynamicLayer):
    """``DynamicLayer`` with slots."""


class PrunedSlidingLayer(SlotLayer, DynamicSlidingWindowLayer):
    """``DynamicSlidingWindowLayer`` with slots; its window counts kept tokens, a superset that the slot mask cuts."""


TWINS: dict[type, type] = {DynamicLayer: PrunedDynamicLayer, DynamicSlidingWindowLayer: PrunedSlidingLayer}
STOCK = frozenset(TWINS)


def _twin(layer: type) -> Any:
    """The class of a stock cache layer with slots; None: it can't have any."""
    if layer not in TWINS and keeps_prompt(layer):
        TWINS[layer] = prompt_twin(layer)
    return TWINS.get(layer)


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


def refuse_keyless(lm: Any, layers: list[int]) -> None:
    """Raise NotImplementedError if one of the `layers` of a text model attends to keys that its cache does not hold."""
    kept = new_cache(lm.config).layers
    for i in layers:
        if i >= len(kept) or not holds_columns(kept[i]):
            raise NotImplementedError(
                f"decoder layer {i} of {type(lm).__name__} attends, and keeps no keys in the cache, so vtc can't tell "
                f"which tokens it sees. {versions()}"
            )


def refuse_other_places(lm: Any, layers: Iterable[Any]) -> None:
    """Raise NotImplementedError if a decoder layer keeps anything in a cache layer of another number than its own."""
    for i, layer in enumerate(layers):
        numbers = (getattr(module, "layer_idx", None) for module in layer.modules())
        places = sorted({n for n in numbers if isinstance(n, int)} | {i})
        if len(places) > 1:
            raise NotImplementedError(
                f"decoder layer {i} of {type(lm).__name__} keeps what it has seen in the layers "
                f"{', '.join(map(str, places))} of the cache, and vtc follows one of the same number only. Use a model "
                f"whose layers have one attention each. {versions()}"
            )


def _unsupported(cache: Cache) -> list[str]:
    """Names of the classes of a cache's layers that vtc can't work with."""
    found = {type(layer) for layer in cache.layers}
    replica = getattr(cache, "layer_class_to_replicate", None)
    found |= {replica} if isinstance(replica, type) else set()
    odd = (t for t in found if not issubclass(t, SlotLayer) and t not in (STATE, NOTHING) and _twin(t) is None)
    return sorted(t.__name__ for t in odd)


def length_of(cache: Any) -> int:
    """How many columns a cache holds, dropped ones among them; none where there is no cache."""
    return int(cache.get_seq_length()) if isinstance(cache, Cache) else 0


def first_columns(cache: Any) -> int:
    """Number of the first layer of a cache that holds columns: the one that text models ask how long the past is."""
    return next((i for i, layer in enumerate(cache.layers) if holds_columns(layer)), 0)


def is_pruned(cache: Any, layer: int | None = None) -> bool:
    """Whether any layer (or layer number `layer`) of `cache` carries slots."""
    if not isinstance(cache, Cache):
        return False
    layers = cache.layers if layer is None else cache.layers[layer : layer + 1]
    if STOCK.issuperset(map(type, layers)):  # every step of an unpruned prompt asks
        return False
    return any(isinstance(one, SlotLayer) and one.has_slots for one in layers)


def slot_layer(cache: Cache, index: int) -> Any:
    """Layer `index` of `cache` as a slot layer, replaced in place by its twin when it is not one yet (state kept)."""
    replica = getattr(cache, "layer_class_to_replicate", None)
    while replica is not None and len(cache.layers) <= index:
        cache.layers.append(replica())
    layer = cache.layers[index]
    if isinstance(layer, SlotLayer):
        return layer
    twin = _twin(type(layer))
    new = twin.__new__(twin)  # assigning __class__ fails: 'object layout differs'
    new.__dict__.update(layer.__dict__)
    cache.layers[index] = new
    return new


def as_stock(layer: Any) -> Any:
    """A layer's keys and values as a stock layer holds them: whatever happens to the one happens to the other."""
    stock: Any = next((stock for stock, twin in TWINS.items() if type(layer) is twin), None)
    if stock is None:
        return layer
    found = stock.__new__(stock)
    found.__dict__ = layer.__dict__
    return found


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
    if n and not layer.has_slots:  # turned prunable after an unpruned turn
        length = layer.get_seq_length()
        layer.slots = torch.arange(length - n, length, device=new.device).expand(new.shape[0], -1)
    old = layer.held_slots()
    key = ("slots", n, layer.history, id(new))
    if key not in memo:
        memo[key] = new if old is None else torch.cat([old.to(new.device), new], 1)
    return memo[key]


def push_slots(layer: Any, new: Tensor, full: int, memo: dict[Any, Tensor]) -> Tensor:
    """Record that `layer` is about to hold the columns `new` of a forward over `full` tokens; gives ``seen_slots``."""
    layer.slots = seen_slots(layer, new, memo)
    layer.announce(new.shape[1], full)
    return layer.slots


class Peek:
    """What attention sees of a cache, without writing to it."""

    def __init__(self, cache: Cache):
        self.cache = cache

    def update(self, keys: Tensor, values: Tensor, index: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The keys of layer `index` with the new ones behind them; the values are the new ones only."""
        held: Any = slot_layer(self.cache, index) if index < len(self.cache.layers) else None
        if held is None or not held.physical():
            return keys, values
        return torch.cat([held.held_keys().to(keys.device), keys], 2), values
