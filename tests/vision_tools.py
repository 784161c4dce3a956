"""Tools of the vision tests: calls of the real feature methods, where patches stand in a tower, a spying attention."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from zoo import tiny

from vtc.models.layout.layouts_by_family import VisionCall
from vtc.models.layout.model_parts import Parts, locate
from vtc.models.layout.vision_call_record import VisionRecord
from vtc.models.tower.tower_hooks import VisionSide
from vtc.pruners.base import Pruner
from vtc.pruners.layout import Layout
from vtc.pruners.primitives.score_pruner import ScorePruner
from vtc.pruners.signals import Signal
from vtc.pruners.visual_tokens import VisualTokens

PIXELS = {
    "image": (
        *("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask", "batch_num_images"),
        *("image_merge_sizes", "spatial_shapes"),
    ),
    "video": ("pixel_values_videos", "video_grid_thw", "video_merge_sizes"),
}

CLASS_TOKEN = ("clip_vision_model", "dinov2", "internvl_vision")
"""Towers with a class token in front of each row."""


@dataclass(kw_only=True)
class Norm(ScorePruner):
    """Keeps the tokens with the longest features: depends on what is in the picture, not on its place in the batch."""

    name: ClassVar[str] = "norm"
    stage: ClassVar[str] = "vision"
    layer: int | None = 1

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.features.float().norm(dim=-1)


def ready(name: str, impl: str = "sdpa") -> nn.Module:
    """A tiny model whose tower is not silenced by zero norm weights."""
    model = tiny(name, impl)
    for module in locate(model).tower.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
    return model


def arguments(core: nn.Module, inputs: dict[str, Any], modality: str) -> dict[str, Any]:
    """Those of the model's inputs that its feature method takes."""
    taken = inspect.signature(getattr(core, f"get_{modality}_features")).parameters
    known = {k: inputs[k] for k in PIXELS[modality] if k in inputs}
    if "pixel_values_videos" in known and "pixel_values_videos" not in taken:
        known["pixel_values"] = known.pop("pixel_values_videos")  # OneVision in transformers 5.5
    return {k: v for k, v in known.items() if k in taken or ("kwargs" in taken and k == "image_sizes")}


def features(core: nn.Module, inputs: dict[str, Any], modality: str = "image") -> Any:
    """The model's own vision call."""
    return getattr(core, f"get_{modality}_features")(**arguments(core, inputs, modality), return_dict=True)


def record(
    parts: Parts,
    inputs: dict[str, Any],
    modality: str = "image",
    pruners: Sequence[Pruner] = (),
    signals: Sequence[Signal] = (),
) -> tuple[Any, VisionRecord]:
    """The vision call with hooks: pruned by `pruners`, `signals` recorded."""
    stops = [(p, stop) for p in pruners for stop in p.stops(len(parts.layers))]
    side = VisionSide(parts, stops, signals).attach()
    given = arguments(parts.core, inputs, modality)
    try:
        output, found = side.record(modality, given, lambda: features(parts.core, inputs, modality))
    finally:
        side.detach()
    assert found is not None
    return output, found


def pad_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a pruned tower pad its rows as on a device, where lengths are not looked at."""
    monkeypatch.setattr("vtc.models.tower.packed_segments.decides_on_host", lambda x: False)


def rows_of(output: Any) -> list[Tensor]:
    """The features of each item `[n, D]`."""
    return [f.reshape(-1, f.shape[-1]) for f in output.pooler_output]


def visual_layers(parts: Parts) -> nn.ModuleList:
    """The tower's layers, found by their number and not by name."""
    found = [m for m in parts.tower.modules() if isinstance(m, nn.ModuleList) and len(m) == 4]
    return found[0]


def attention_of(layer: nn.Module) -> nn.Module:
    found = next(m for n, m in layer.named_children() if "attn" in n or ("attention" in n and "norm" not in n))
    return getattr(found, "attention", found)  # DINOv2's is wrapped before transformers 5.23


@contextmanager
def own_attention(parts: Parts, function: Callable[..., Any], first: int = 0) -> Iterator[None]:
    """Run `f(layer, module, q, k, v, mask, scaling) -> [B, L, H, d]` as attention of tower layers >= `first`."""

    def run(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        scaling = kwargs.get("scaling") or q.shape[-1] ** -0.5
        return function(module._test_layer, module, q, k, v, attention_mask, scaling), None

    ALL_ATTENTION_FUNCTIONS.register("vision_test", run)
    changed = []
    for i, layer in enumerate(visual_layers(parts)):
        if i >= first:
            attention = attention_of(layer)
            attention._test_layer = i
            changed.append((attention, attention.config))
            attention.config = copy.copy(attention.config)
            attention.config.__dict__["_attn_implementation_internal"] = "vision_test"
    yield
    for attention, config in changed:
        attention.config = config


def token_patches(parts: Parts, inputs: dict[str, Any], modality: str, layouts: Sequence[Layout]) -> list[Tensor]:
    """Per item `[n, U]`: where each token's patches stand in the tower's flattened rows, -1 at newlines.

    By arithmetic from the layouts, which test_layouts proves against the models' own code; the order inside Qwen2.5's
    tower is found by looking at what goes into its first block.
    """
    config, family = parts.config, parts.family
    unit = round(family.unit(config) ** 0.5)
    prefix = int(getattr(config, "vision_feature_select_strategy", None) == "default")
    found, start = [], 0
    for item, layout in enumerate(layouts):
        tokens = []
        for g, row, col in layout.coordinates.tolist():
            grid = layout.grids[g]
            if col < 0:
                tokens.append([-1] * (4 if modality == "video" and unit == 1 else unit**2))
                continue
            if family.packed and hasattr(parts.core, "visual"):
                place = sum(x.rows * x.cols for x in layout.grids[:g]) + row * grid.cols + col
                tokens.append([start + place * unit**2 + j for j in range(unit**2)])
                continue
            if grid.kind == "frame":  # OneVision pools 2 x 2 patches
                cells, side, tile = 2, grid.cols * 2, g
            else:
                cells, side, tile = unit, grid.cols * unit, 0
            if grid.kind == "mosaic":
                side = 4
                across, down = _tiles(inputs["image_sizes"][item].tolist())
                row, col = row + (down * side - grid.rows) // 2, col + (across * side - grid.cols) // 2
                tile = 1 + row // side * across + col // side
                row, col = row % side, col % side
            dense = not (family.packed or ("image_sizes" in inputs and not family.newlines))
            length = side * side + prefix if dense else 0
            base = start + tile * length + (prefix if dense else 0)
            tokens.append(
                [base + (row * cells + dy) * side + col * cells + dx for dy in range(cells) for dx in range(cells)]
            )
        found.append(torch.tensor(tokens))
        start += _span(layout, inputs, item, found[-1], prefix, family.newlines, modality)
    order = block_order(parts, inputs, modality)
    return found if order is None else [torch.where(f >= 0, order[f.clamp(min=0)], -1) for f in found]


def _span(layout: Layout, inputs: Any, item: int, places: Tensor, prefix: int, tiled: bool, modality: str) -> int:
    """Tower positions that an item takes."""
    if not tiled:
        return places.numel() + prefix
    if modality == "video":
        return len(layout.grids) * 16
    across, down = _tiles(inputs["image_sizes"][item].tolist())
    return (1 if len(layout.grids) == 1 else 1 + across * down) * (16 + prefix)


def _tiles(size: list[int]) -> tuple[int, int]:
    from zoo.media import anyres_tokens

    crops, _ = anyres_tokens((size[0], size[1]))
    return {5: (2, 2), 3: (2, 1) if size[1] > size[0] else (1, 2)}[crops]


def block_order(parts: Parts, inputs: dict[str, Any], modality: str) -> Tensor | None:
    """Where each patch (reading order) stands inside Qwen2.5-VL's tower."""
    if not hasattr(parts.tower, "fullatt_block_indexes"):
        return None
    seen: list[Tensor] = []
    hooks = [
        parts.tower.patch_embed.register_forward_hook(lambda m, a, out: seen.append(out)),
        parts.tower.blocks[0].register_forward_pre_hook(lambda m, a: seen.append(a[0])),
    ]
    features(parts.core, inputs, modality)
    for hook in hooks:
        hook.remove()
    before, after = seen
    same = (before[:, None] == after[None]).all(-1)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1)


def call(parts: Parts, inputs: dict[str, Any], modality: str, lengths: Sequence[int]) -> VisionCall:
    return VisionCall(parts.core, modality, arguments(parts.core, inputs, modality), list(lengths))
