"""Heads on the tower's patch features and their losses (stage 1 only)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.eval.train.scenes.palette import ALL_COLORS, ALL_SHAPES, GRID, LETTERS, NUM_PATCHES, PATCH_SIZE
from vtc.eval.train.scenes.render import IGNORE, PatchLabels

CLASS_HEADS = {
    "color": len(ALL_COLORS),
    "shape": len(ALL_SHAPES),
    "letter": len(LETTERS),
    "first_digit": 10,
    "second_digit": 10,
}
"""Heading of :class:`PatchLabels` -> number of classes."""

POSITION_STEPS = 8
POSITION_WIDTH = 2 * POSITION_STEPS
_POSITION_SHARPNESS = 6.0
_RECONSTRUCTION = 15
_LOSS_WEIGHTS = {"color": 1.0, "shape": 1.5, "letter": 1.5, "first_digit": 1.0, "second_digit": 1.0}


def position_code() -> Tensor:
    """Return a thermometer code of each patch's own column and row [576, 16] in [-1, 1]."""
    row, column = np.divmod(np.arange(NUM_PATCHES), GRID)
    place = torch.from_numpy(np.stack([column, row], axis=-1)).float()
    place = (place + 0.5) / GRID
    thresholds = torch.arange(1, POSITION_STEPS + 1) / (POSITION_STEPS + 1)
    return torch.tanh((place[..., None] - thresholds) * _POSITION_SHARPNESS).flatten(-2)


class PatchHeads(nn.Module):
    """Linear heads that keep what each patch shows, and where, linearly readable."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.classes = nn.ModuleDict({name: nn.Linear(width, count) for name, count in CLASS_HEADS.items()})
        self.offset = nn.Linear(width, 2)
        self.position = nn.Linear(width, POSITION_WIDTH)
        self.reconstruction = nn.Linear(width, _RECONSTRUCTION)
        self.register_buffer("position_code", position_code(), persistent=False)

    def forward(
        self, features: Tensor, patches: Tensor, labels: Sequence[PatchLabels]
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the summed loss of all heads and their figures.

        Parameters
        ----------
        features : Tensor
            Patch features [batch, 576, width].
        patches : Tensor
            The normalised pixels [batch, 576, 588], to be reconstructed coarsely.
        labels : sequence of PatchLabels
            One per image.
        """
        hidden = self.norm(features)
        total = torch.zeros(())
        figures: dict[str, float] = {}
        for name, head in self.classes.items():
            target = stack_labels(labels, name)
            logits = head(hidden).float().flatten(0, 1)
            known = target.flatten() != IGNORE
            figures[name] = float("nan")
            if known.any():
                logits, target = logits[known], target.flatten()[known]
                total = total + _LOSS_WEIGHTS[name] * F.cross_entropy(logits, target)
                figures[name] = (logits.argmax(-1) == target).float().mean().item()
        owned = stack_labels(labels, "owner") >= 0
        offset_error = self.offset(hidden).float() - stack_labels(labels, "offset")
        position_error = self.position(hidden).float() - self.position_code
        coarse_error = self.reconstruction(hidden).float() - _coarse_pixels(patches)
        total = total + offset_error[owned].pow(2).mean()
        total = total + 3.0 * position_error.pow(2).mean() + 0.5 * coarse_error.pow(2).mean()
        figures["position_error"] = position_error.detach().pow(2).mean().item()
        figures["coarse_error"] = coarse_error.detach().pow(2).mean().item()
        return total, figures


def stack_labels(labels: Sequence[PatchLabels], name: str) -> Tensor:
    """Stack one heading of the labels over the images."""
    return torch.from_numpy(np.stack([getattr(label, name) for label in labels]))


def _coarse_pixels(patches: Tensor) -> Tensor:
    """Mean colour of each quarter of a patch and the contrast of each channel."""
    half = PATCH_SIZE // 2
    shape = (*patches.shape[:2], 3, 2, half, 2, half)
    quarters = patches.view(shape).mean(dim=(4, 6)).flatten(2)
    contrast = patches.view(*patches.shape[:2], 3, -1).std(dim=-1)
    return torch.cat([quarters * 0.5, contrast], dim=-1)
