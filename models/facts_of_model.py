"""Sizes of a model, and values by which it is known again, for methods that were trained for one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.layout.model_parts import Parts
from vtc.models.layout.run_projector import projector_of
from vtc.models.stock.layer_sizes import layer_size
from vtc.pruners.model_facts import ModelFacts, Sketch

VALUES = 16  # of each weight


def facts_of(parts: Parts) -> ModelFacts:
    """What a trained method may ask of the model of these `parts`."""
    text = parts.lm.config
    vision = getattr(parts.config, "vision_config", None)

    def size(config: Any, *names: str) -> int | None:
        for name in names:
            found = layer_size(config, name)
            if isinstance(found, int):
                return found
        return None

    return ModelFacts(
        kind=str(getattr(parts.config, "model_type", "")),
        width=size(text, "hidden_size") or 0,
        layers=len(parts.layers),
        heads=size(text, "num_attention_heads") or 0,
        vision_width=size(vision, "hidden_size", "embed_dim", "width"),
        vision_layers=size(vision, "num_hidden_layers", "depth"),
        sketch=lambda: _sketch(parts),
    )


def _sketch(parts: Parts) -> Sketch:
    found = {}
    for name, weight in _weights(parts):
        values = _values(weight)
        if values:
            found[name] = values
    return found


def _weights(parts: Parts) -> Iterator[tuple[str, Tensor]]:
    """The embedding table, a matrix of the first decoder layer, and one of the projector."""
    table = getattr(parts.lm.get_input_embeddings(), "weight", None)
    if table is not None:
        yield "embedding table", table
    first = _matrix(parts.layers[0])
    if first is not None:
        yield "first decoder layer", first
    if parts.family.projector and (found := _matrix(projector_of(parts))) is not None:
        yield "projector", found


def _matrix(module: nn.Module) -> Tensor | None:
    """The first weight matrix of the stock module: what an adapter put beside it is passed over."""
    named = ((name, p) for name, p in module.named_parameters() if "lora" not in name and p.dim() >= 2)
    return next((p for _, p in named), None)


def _values(weight: Tensor) -> list[float]:
    """Values spread evenly over a weight; none where there is nothing to read."""
    if not weight.is_floating_point() or weight.device.type == "meta" or not weight.numel():
        return []
    flat = weight.detach().reshape(-1)
    step = torch.linspace(0, flat.numel() - 1, VALUES, dtype=torch.float64).long().to(flat.device)
    return [float(f"{x:.6g}") for x in flat[step].float().tolist()]
