"""Layers that have no keys of their own, and attend to those of a layer before them (Gemma 3n, small Gemma 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .call_arguments import takes
from .transformers_api import versions


def key_sources(lm: Any, layers: Sequence[Any]) -> list[int]:
    """For each decoder layer the number of the layer whose keys it reads: its own, or the last before it of its kind.

    Raises
    ------
    NotImplementedError
        If layers hand keys on, but don't say which of them reads whose.
    """
    attentions = [getattr(layer, "self_attn", None) for layer in layers]
    kinds, sources = getattr(lm.config, "layer_types", None) or [""] * len(layers), []
    for i, attention in enumerate(attentions):
        if not takes(layers[i], "shared keys"):
            sources.append(i)
            continue
        shared = getattr(attention, "is_kv_shared_layer", None)
        if shared is None:
            raise NotImplementedError(
                f"{type(layers[i]).__name__} takes keys of other layers, and vtc can't tell of which. {versions()}"
            )
        own = (k for k in reversed(range(i)) if sources[k] == k and kinds[k] == kinds[i])
        sources.append(next(own) if shared else i)
    return sources
