"""Runs a model's projector on single tokens, given as their patches, family by family.

Every function takes the composite model and `x` `[M, U, D_enc]`, the `U` patches of each of `M` tokens in the order of
the signal ``PreProjector``, and gives `[M, D]`. Modules that own weights are called as a whole, so that the hooks of
accelerate's offloading bring those weights in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .layouts import pair

if TYPE_CHECKING:
    from .locate import Parts


def side_by_side(core: Any, x: Tensor) -> Tensor:
    """LLaVA, NeXT (one patch a token); InternVL (a token's patches side by side)."""
    return core.multi_modal_projector(x.flatten(1))


def merger(core: Any, x: Tensor) -> Tensor:
    """Qwen-VL: the merger takes consecutive rows as one unit."""
    return core.visual.merger(x.flatten(0, 1))


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


def projector_of(parts: Parts) -> nn.Module:
    """The module whose weights project patches to tokens.

    Raises
    ------
    NotImplementedError
        For a family that only the user's ``VTCConfig(parts=...)`` describes.
    """
    if not parts.family.projector:
        raise NotImplementedError(
            f"vtc does not know the projector of {parts.family.name}; name it in vtc/models/families.py"
        )
    return parts.core.get_submodule(parts.family.projector)


def project(parts: Parts, x: Tensor) -> Tensor:
    """Project tokens given as ``PreProjector`` gives them.

    Parameters
    ----------
    parts : Parts
        The model's modules.
    x : Tensor
        `[..., U, D_enc]`, any dtype.

    Returns
    -------
    Tensor
        `[..., D]` in the projector's dtype, on the device of `x`.

    Raises
    ------
    NotImplementedError
        For families whose tokens are no sets of patches.
    ValueError
        If `x` has another number of patches per token.
    """
    family = parts.family
    if family.project is None:
        raise NotImplementedError(
            f"{family.name}: its projector can't be run on single tokens, because {family.no_project}; use a method "
            "that works on projected features"
        )
    unit = family.unit(parts.config)
    if x.dim() < 2 or x.shape[-2] != unit:
        raise ValueError(
            f"project takes [..., {unit}, D_enc], {unit} patches per token of {family.name}; got {list(x.shape)}"
        )
    lead, flat = x.shape[:-2], x.reshape(-1, *x.shape[-2:])
    out = family.project(parts.core, flat.to(_dtype(projector_of(parts), x.dtype)))
    return out.reshape(*lead, out.shape[-1]).to(x.device)


def _dtype(module: nn.Module, default: torch.dtype) -> torch.dtype:
    """What the module computes in: the first dtype of its weights that is no quantised storage."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point() and p.dtype.itemsize > 1), default)
