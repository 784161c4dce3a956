"""The projectors of the families on single tokens: the functions that ``families`` names.

Every function takes the composite model and `x` `[M, U, D_enc]`, the `U` patches of each of `M` tokens in the order of
the signal ``PreProjector``, and gives `[M, D]`. Modules that own weights are called as a whole, so that the hooks of
accelerate's offloading bring those weights in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .layouts_by_family import pair


def through(name: str) -> Callable[[Any, Tensor], Tensor]:
    """The projector of that name takes one patch a token, or a token's patches side by side."""
    return lambda core, x: getattr(core, name)(x.flatten(1))


side_by_side = through("multi_modal_projector")  # LLaVA, NeXT; InternVL


def units(name: str) -> Callable[[Any, Tensor], Tensor]:
    """The projector of that name takes consecutive rows as one unit: Qwen-VL's merger."""
    return lambda core, x: core.get_submodule(name)(x.flatten(0, 1))


def hyperclova(core: Any, x: Tensor) -> Tensor:
    """HyperCLOVA X: a linear layer behind Qwen2.5-VL's merger."""
    return core.projector(core.vision_model.merger(x.flatten(0, 1)))


def glm(core: Any, x: Tensor) -> Tensor:
    """GLM-V: a norm, and a convolution whose one place is the unit, before the merger."""
    visual = core.visual
    side = visual.spatial_merge_size
    rows = visual.post_layernorm(x).unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return visual.merger(visual.downsample(rows).flatten(1))


def connector(core: Any, x: Tensor) -> Tensor:
    """Idefics3, SmolVLM: what comes behind the connector's pixel shuffle."""
    return core.connector.modality_projection(x.flatten(1))


def gemma3(core: Any, x: Tensor) -> Tensor:
    """Gemma3: tokens are laid out as square images, the last of them filled up, whose cells the projector averages."""
    projector = core.multi_modal_projector
    side, cell = projector.tokens_per_side, projector.kernel_size
    tokens, width = x.shape[0], x.shape[-1]
    x = nn.functional.pad(x, (0, 0, 0, 0, 0, -tokens % side**2))
    x = x.reshape(-1, side, side, cell, cell, width).transpose(2, 3).reshape(-1, (side * cell) ** 2, width)
    return projector(x).flatten(0, 1)[:tokens]


def shuffled(core: Any, x: Tensor) -> Tensor:
    """Aya Vision, Command A Vision: the projector shuffles the pixels of square pictures, here of one token each."""
    return core.multi_modal_projector(x).flatten(0, -2)


def mistral3(name: str) -> Callable[[Any, Tensor], Tensor]:
    """For the projector of that name (Mistral3, LightOnOCR), tokens are laid out as one image of one row of cells."""

    def run(core: Any, x: Tensor) -> Tensor:
        height, width = pair(core.config.vision_config.patch_size)
        rows, (down, across) = _one_row_of_cells(x)
        return getattr(core, name)(rows, [(down * height, across * width)])

    return run


def paddle(core: Any, x: Tensor) -> Tensor:
    """PaddleOCR-VL: the same, with a grid of patches."""
    rows, shape = _one_row_of_cells(x)
    return core.projector(rows, torch.tensor([(1, *shape)], device=x.device))


def _one_row_of_cells(x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """`[M, side * side, C]` as the rows of one picture whose square cells they are, and its shape in patches."""
    tokens, side = x.shape[0], math.isqrt(x.shape[1])
    rows = x.reshape(tokens, side, side, -1).transpose(0, 1).reshape(side * tokens * side, -1)
    return rows, (side, tokens * side)


def lfm2(core: Any, x: Tensor) -> Tensor:
    """LFM2-VL: the tower's last norm, and pictures of one token each."""
    side = core.config.downsample_factor
    tower = getattr(core.vision_tower, "vision_model", core.vision_tower)  # older transformers: a tower in a tower
    normed = tower.post_layernorm(x).unflatten(1, (side, side))
    return core.multi_modal_projector(normed).flatten(0, -2)


def kimi(core: Any, x: Tensor) -> Tensor:
    """Kimi K2.5: units, each an entry of its own."""
    return core.mm_projector(x)[:, 0]
