"""Tiny random classifiers of timm and open_clip in folders, and labelled pictures for their tests."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from bench_world import png
from safetensors.torch import save_file
from torch import nn

CLASSES = ("ant", "bee", "cat")
SMALL: dict[str, Any] = {
    "img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 4, "mlp_ratio": 2,
    "num_classes": len(CLASSES),
}  # fmt: skip
PATCHES = 16
CLIP: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 48, "head_width": 12, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def _shaken(model: nn.Module) -> nn.Module:
    """Weights so large that pictures and dropped tokens make a difference."""
    torch.manual_seed(0)
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=1.2 / p.shape[-1] ** 0.5)
    return model.eval()


def save_timm(folder: Path, names: bool = False, **changes: Any) -> Path:
    """A random ViT in timm's ``local-dir:`` format; with its own `names` of the outputs if asked."""
    args = SMALL | changes
    model = _shaken(timm.create_model("vit_tiny_patch16_224", **args))
    size = args["img_size"]
    cfg: dict[str, Any] = {
        "input_size": [3, size, size], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic",
        "crop_pct": 1.0, "num_classes": args["num_classes"], "first_conv": "patch_embed.proj", "classifier": "head",
    }  # fmt: skip
    if names:
        cfg["label_names"] = list(CLASSES)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": args["num_classes"], "model_args": args}
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": cfg}))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def save_clip(folder: Path) -> Path:
    """A random CLIP in open_clip's ``local-dir:`` format."""
    import open_clip

    torch.manual_seed(0)
    model = _shaken(open_clip.model.CLIP(**CLIP))
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": preprocess}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def save_pictures(folder: Path, each: int = 4, classes: tuple[str, ...] = CLASSES) -> Path:
    """A folder per class."""
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for j in range(each):
            (folder / name / f"{j}.png").write_bytes(png(100 * i + j, (40, 36)))
    return folder


@lru_cache(maxsize=1)
def classify_world() -> tuple[Path, Path]:
    """Folders of the ViT and of the pictures, made once per process."""
    import tempfile

    place = Path(tempfile.mkdtemp(prefix="vtc-classify-"))
    return save_timm(place / "vit"), save_pictures(place / "pictures")
