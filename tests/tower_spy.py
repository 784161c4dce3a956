"""A spying attention inside a vision tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vision_tools import (
    features,
    own_attention,
    rows_of,
    visual_layers,
)

from vtc.models.layout.model_parts import Parts


class Spy:
    """What each tower layer's attention saw, as flat rows `[T, H]` (received, cls) or `[T, H * d]` (keys, values)."""

    def __init__(self, parts: Parts, inputs: dict[str, Any], modality: str):
        self.rows: dict[tuple[str, int], list[Tensor]] = {}
        self.output: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(
                lambda m, a, out, i=i: self.add("features", i, out[0] if isinstance(out, tuple) else out)
            )
            for i, layer in enumerate(visual_layers(parts))
        ]
        hooks.append(parts.tower.register_forward_hook(lambda m, a, out: self.add("output", -1, out.last_hidden_state)))
        with own_attention(parts, self.attend):
            self.output = rows_of(features(parts.core, inputs, modality))
        for hook in hooks:
            hook.remove()

    def add(self, kind: str, layer: int, x: Tensor) -> None:
        self.rows.setdefault((kind, layer), []).append(x.reshape(-1, x.shape[-1]))

    def attend(self, i: int, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float) -> Tensor:
        logits = q @ k.transpose(2, 3) * scaling
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
        weights = logits.softmax(-1)
        seen = (weights[:, :1] > 0).sum(2)  # queries that may see each key
        self.add("received", i, (weights.sum(2) / seen).transpose(1, 2))
        self.add("cls", i, weights[:, :, 0].transpose(1, 2))
        self.add("keys", i, k.transpose(1, 2).flatten(2))
        self.add("values", i, v.transpose(1, 2).flatten(2))
        return (weights @ v).transpose(1, 2)

    def at(self, kind: str, layer: int, places: Tensor) -> Tensor:
        """`[n, U, C]` at the patches of each token, zeros where there are none."""
        rows = torch.cat(self.rows[kind, layer])
        return rows[places.clamp(min=0)] * (places >= 0)[..., None]
