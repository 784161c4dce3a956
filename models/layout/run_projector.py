"""Runs a model's projector on single tokens, given as their patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .model_parts import Parts


def projector_of(parts: Parts) -> nn.Module:
    """The module whose weights project patches to tokens.

    Raises
    ------
    NotImplementedError
        For a family that only the user's ``VTCConfig(parts=...)`` describes.
    """
    if not parts.family.projector:
        raise NotImplementedError(
            f"vtc does not know the projector of {parts.family.name}; name it in vtc/models/layout/families.py"
        )
    tower, _, inside = parts.family.projector.partition(".")
    if inside and hasattr(parts.core.get_submodule(tower), "vision_model"):  # older transformers: a tower in a tower
        inside = f"vision_model.{inside}"
    return parts.core.get_submodule(".".join(filter(None, (tower, inside))))


def whole_projector(parts: Parts) -> nn.Module:
    """All modules between the tower and the language model, for methods that read weights."""
    projector, behind = projector_of(parts), parts.family.behind
    return nn.Sequential(projector, parts.core.get_submodule(behind)) if behind else projector


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
