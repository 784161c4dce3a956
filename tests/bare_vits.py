"""Small vision transformers of timm and open_clip."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

timm = pytest.importorskip("timm")


IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 4, "num_classes": 7}


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "open_clip":
        from open_clip.transformer import VisionTransformer

        model = VisionTransformer(image_size=32, patch_size=8, width=48, layers=4, heads=4, mlp_ratio=2.0, output_dim=7)
    else:
        extra: dict[str, Any] = {
            "timm": {"qk_norm": True},
            "timm_registers": {"reg_tokens": 2},
            "timm_only_registers": {"global_pool": "avg", "class_token": False, "reg_tokens": 2},
            "timm_average": {"global_pool": "avg", "class_token": False},
        }[kind]
        model = timm.models.vision_transformer.VisionTransformer(**SMALL, **extra)
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=1.2 / p.shape[-1] ** 0.5)
    return model.eval()


def prefix_of(kind: str) -> int:
    return {"timm_registers": 3, "timm_only_registers": 2, "timm_average": 0}.get(kind, 1)
