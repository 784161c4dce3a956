"""Which of a model's layers a small one keeps: every kind of layer that there is, in the order they come in."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any

# lists of layer numbers, such as mlp_only_layers or fullatt_block_indexes
INDEX_LIST = re.compile(r"(indexes|indices|idxs|_layers)$")


def pick(kinds: Sequence[Hashable], want: int) -> list[int]:
    """Layers to keep, ascending: the first of each kind, and the earliest others until there are `want`."""
    firsts = {kind: i for i, kind in reversed(list(enumerate(kinds)))}
    picked = sorted(firsts.values())
    others = [i for i in range(len(kinds)) if i not in picked]
    return sorted(picked + others[: max(0, want - len(picked))])


def _per_layer(config: dict[str, Any], depth: int) -> dict[str, list[Any]]:
    lists = {k: list(v) for k, v in config.items() if isinstance(v, (list, tuple)) and len(v) == depth}
    return {k: v for k, v in lists.items() if _plain(v) and not (INDEX_LIST.search(k) and v == list(range(depth)))}


def _index_lists(config: dict[str, Any], depth: int) -> dict[str, list[int]]:
    return {
        k: list(v)
        for k, v in config.items()
        if INDEX_LIST.search(k) and isinstance(v, (list, tuple)) and (len(v) != depth or list(v) == list(range(depth)))
        if all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < depth for i in v)
    }


def _plain(values: Sequence[Any]) -> bool:
    return all(isinstance(v, Hashable) for v in values)


def own_values(config: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """What ``per_layer_config`` says of some layers, by their numbers."""
    return {int(i): dict(own) for i, own in (config.get("per_layer_config") or {}).items()}


def kinds_of(config: dict[str, Any], depth: int) -> list[tuple[Hashable, ...]]:
    """Per layer what tells it from others: entries of lists with one per layer, membership in lists of layers."""
    lists, members, others = _per_layer(config, depth), _index_lists(config, depth), own_values(config)
    dense, step = config.get("first_k_dense_replace") or 0, config.get("decoder_sparse_step") or 1
    kinds = []
    for i in range(depth):
        own: list[Hashable] = [values[i] for values in lists.values()]
        # each layer of a deepstack list is of a kind of its own: each feeds another decoder layer
        own += [f"{k} {v.index(i) if 'deepstack' in k else ''}" if i in v else "" for k, v in members.items()]
        kinds.append((*own, i < dense, (i + 1) % step == 0, str(others.get(i))))
    return kinds


def keep_layers(config: dict[str, Any], field: str, want: int) -> list[int]:
    """Cut the layers of `config`, whose number stands in `field`, to `want` or as many as it has kinds.

    All lists about layers are cut alike, in place. Returns the layers kept.
    """
    depth = int(config[field])
    picked = pick(kinds_of(config, depth), min(want, depth))
    lists, members, others = _per_layer(config, depth), _index_lists(config, depth), own_values(config)
    if others:
        config["per_layer_config"] = {new: others[old] for new, old in enumerate(picked) if old in others}
    for name, values in lists.items():
        config[name] = [values[i] for i in picked]
    for name, values in members.items():
        config[name] = [new for new, old in enumerate(picked) if old in values]
    if config.get("first_k_dense_replace"):
        config["first_k_dense_replace"] = sum(i < config["first_k_dense_replace"] for i in picked)
    if (config.get("decoder_sparse_step") or 1) > 1:
        config["decoder_sparse_step"] = 2
    config[field] = len(picked)
    return picked
