"""What pruning inside the tower must be equal to: the full tower, in which dropped patches are hidden as keys."""

from __future__ import annotations

from typing import Any

import torch
from methods import NO_VISION_STAGE
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from vision_tools import CLASS_TOKEN, features, own_attention, rows_of, token_patches, visual_layers

from vtc.models.layout.model_parts import Parts
from vtc.models.layout.vision_call_record import VisionRecord

NAMES = ("llava", "llava_siglip", "llava_dinov2", "gemma3", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
NAMES = tuple(name for name in NAMES if name not in NO_VISION_STAGE)


def masked(parts: Parts, inputs: dict[str, Any], modality: str, found: VisionRecord) -> Any:
    """The unpruned tower, in which tokens dropped at a layer are hidden as keys from that layer on."""
    prefix = int(parts.config.vision_config.model_type in CLASS_TOKEN)
    places = token_patches(parts, inputs, modality, found.layouts())
    total = max(int(p.max()) for p in places) + 1
    rows = 1
    if not parts.family.packed:
        length = 16 * parts.family.unit(parts.config) + prefix
        rows = -(-total // length)
        total = rows * length
    hidden: dict[int, Tensor] = {}
    for step in found.steps:
        keep = torch.zeros(total, dtype=torch.bool)
        starts = [int(p[p >= 0].min()) - prefix for p in places] + [total]
        for i, (place, kept) in enumerate(zip(places, step.kept, strict=True)):
            if torch.isin((place[:, 0] >= 0).nonzero()[:, 0], kept).all():  # whole: its padding patches stay too
                keep[starts[i] : starts[i + 1]] = True
            keep[place[kept].flatten().clamp(min=0)] |= place[kept].flatten() >= 0
        keep = keep.view(rows, -1)
        keep[:, :prefix] = True
        hidden[step.layer] = keep
    done = dict.fromkeys(range(len(visual_layers(parts))), 0)

    def attend(i: int, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float) -> Tensor:
        keep = hidden[max(layer for layer in hidden if layer <= i)]
        n = q.shape[2]
        if parts.family.packed:
            keep = keep[:, done[i] : done[i] + n]
            done[i] += n
        seen = keep[:, None, None] | torch.eye(n, dtype=torch.bool)
        return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling).transpose(1, 2)

    with own_attention(parts, attend, first=min(hidden)):
        return features(parts.core, inputs, modality)


def assert_equal_where_kept(a: Any, b: Any, found: VisionRecord) -> None:
    kept = found.steps[-1].kept
    for x, y, k in zip(rows_of(a), rows_of(b), kept, strict=True):
        assert torch.allclose(x[k], y[k], atol=1e-4), (x[k] - y[k]).abs().max()
    deep = [getattr(o, "deepstack_features", None) or [] for o in (a, b)]
    for x, y in zip(*deep, strict=True):
        if isinstance(x, Tensor):  # transformers 5.5 does not split them
            x, y = x.split(found.lengths), y.split(found.lengths)
        for one, other, k in zip(x, y, kept, strict=True):
            assert torch.allclose(one[k], other[k], atol=1e-4)
