"""The projectors of the families on single tokens: the functions that ``families`` names.

Every function takes the composite model and `x` `[M, U, D_enc]`, the `U` patches of each of `M` tokens in the order of
the signal ``PreProjector``, and gives `[M, D]`. Modules that own weights are called as a whole, so that the hooks of
accelerate's offloading bring those weights in.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .layouts_by_family import pair


def side_by_side(core: Any, x: Tensor) -> Tensor:
    """LLaVA, NeXT (one patch a token); InternVL (a token's patches side by side)."""
    return core.multi_modal_projector(x.flatten(1))


def merger(core: Any, x: Tensor) -> Tensor:
    """Qwen-VL: the merger takes consecutive rows as one unit."""
    return core.visual.merger(x.flatten(0, 1))


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


def mistral3(core: Any, x: Tensor) -> Tensor:
    """Mistral3: tokens are laid out as one image of one row of cells."""
    merge, tokens = core.config.spatial_merge_size, x.shape[0]
    height, width = pair(core.config.vision_config.patch_size)
    rows = x.reshape(tokens, merge, merge, -1).transpose(0, 1).reshape(merge * tokens * merge, -1)
    return core.multi_modal_projector(rows, [(merge * height, tokens * merge * width)])
