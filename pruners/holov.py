"""HoloV: budgets for crops of the picture by attention and by how varied they are."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vtc.pruners.primitives.best_per_part import (
    best,
    budgets_of,
    columns_of,
    part_sizes,
    part_sums,
    per_token,
    rank_in_part,
)
from vtc.pruners.primitives.precision import wide

from .base import Pruner
from .registry import register_pruner
from .signals import EncoderAttention, Signal
from .visual_tokens import VisualTokens


@register_pruner("holov")
@dataclass(kw_only=True)
class HoloV(Pruner):
    """HoloV (Zou et al., NeurIPS 2025, arXiv 2510.02912): holistic visual context.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    crops : int
        P: runs of tokens in reading order that share the budget. The authors' is 16.
    alpha : float
        Weight of the variance. The authors' is 0.09.
    official : bool
        As the authors' code, which keeps fewer tokens than asked where a crop is smaller than its budget (it fills up
        with zeros).

    Notes
    -----
    Stage: input. The N tokens in reading order are cut into P runs of nearly equal length (bands of rows); `S` is the
    cosine matrix of a run's n features with a zero diagonal, ``mean_i = sum_j S_ij / (n - 1)`` and
    ``var_i = sum_j (S_ij - mean_i)^2 / (n - 1)``, the diagonal included. Score ``1000 a_i + alpha c var_i`` with a the
    class token's attention, mean over heads, in the layer that the projector reads, and c the ratio of the run's means
    of ``1000 a`` and ``var`` (+ 1e-6). A run's weight w is its mean score over the sum of all runs' means; it
    keeps ``floor(w T)`` tokens, the runs of the largest weight one more, and inside a run attention alone decides.
    What a run is too small for goes to the others. O(N^2 D / P), P matrices of N/P x N/P.

    That c is taken run by run, as the authors' code does, makes the variance cancel: a run's mean score is its mean
    attention times ``1 + alpha var / (var + 1e-6)``, so that in effect budgets follow attention, and only runs of
    nearly equal tokens (a blank sky) get up to alpha less.

    Features are the projected ones. Towers without a class token: mean attention received. An anyres picture is one
    sequence with the whole picture in front; frames of a video too. Values that are not finite count as 0.
    """

    crops: int = 16
    alpha: float = 0.09
    official: bool = False

    paper: ClassVar[str] = "arXiv 2510.02912"
    signals: ClassVar[tuple[Signal, ...]] = (EncoderAttention(),)
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crops < 1:
            raise ValueError(f"holov.crops={self.crops!r} is out of range; it must be an int >= 1")
        if self.official:
            self.adaptive_count = True  # type: ignore[misc]

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """Run by run, in each by falling attention."""
        raw = wide(tokens.read(self.signals[0])).mean(1)
        part, blocks = self._runs(tokens)
        count, valid = blocks.shape[1], tokens.valid
        attention = 1000 * raw.nan_to_num(0, 0, 0).masked_fill(~valid, 0)
        variance = self._variance(tokens.features, blocks, part.shape[1])
        sizes = part_sizes(part, count).clamp(min=1)
        looked, varied = (part_sums(x, part, count) / sizes for x in (attention, variance))
        weight = looked + self.alpha * looked / (varied + 1e-6) * varied  # the mean of the run's scores
        weight = weight / weight.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)

        budget = budgets_of(tokens)
        whole = (weight * budget).long()
        rank = rank_in_part(raw, part, count)
        if self.official:
            heaviest = weight.sort(dim=1, descending=True, stable=True).indices.argsort(1)
            whole = whole + (heaviest < budget - whole.sum(1, keepdim=True))
            chosen = (rank < per_token(whole, part)) & valid
        else:
            chosen = best(per_token(whole + weight, part) - rank, budget, valid)
        return columns_of(chosen, k, part * part.shape[1] + rank, exact=not self.official)

    def _runs(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """Run of each token `[B, N]`, and the tokens of each run `[B, P, m]`, -1 where it has fewer."""
        rows, width = tokens.ids.shape
        count = min(self.crops, max(tokens.counts))
        part, blocks = np.full((rows, width), count), np.full((rows, count, -(-width // count)), -1)
        for i, n in enumerate(tokens.counts):
            parts = min(count, n)
            edges = np.arange(parts + 1) * n // parts
            for p, (start, stop) in enumerate(itertools.pairwise(edges.tolist())):
                part[i, start:stop] = p
                blocks[i, p, : stop - start] = np.arange(start, stop)
        device = tokens.ids.device
        return torch.from_numpy(part).to(device), torch.from_numpy(blocks).to(device)

    @staticmethod
    @torch.no_grad()
    def _variance(features: Tensor, blocks: Tensor, width: int) -> Tensor:
        """Variance of each token's cosines to the others of its run, `[B, N]` float32."""
        rows, count, m = blocks.shape
        index = blocks.clamp(min=0).view(rows, -1)
        x = wide(features.gather(1, index[..., None].expand(-1, -1, features.shape[-1])))
        x = x.view(rows * count, m, -1)
        gram = x @ x.transpose(1, 2)
        norm = gram.diagonal(dim1=-2, dim2=-1).sqrt().clamp(min=1e-8)
        cosine = (gram / (norm[:, :, None] * norm[:, None])).view(rows, count, m, m)
        real = blocks >= 0
        pairs = real[:, :, None] & real[..., None]
        eye = torch.eye(m, dtype=torch.bool, device=blocks.device)
        cosine = cosine.nan_to_num(0, 0, 0).masked_fill(eye | ~pairs, 0)
        others = (real.sum(-1)[..., None] - 1).clamp(min=1)
        mean = cosine.sum(-1) / others
        variance = ((cosine - mean[..., None]) ** 2 * pairs).sum(-1) / others
        out = variance.new_zeros(rows, width + 1)
        return out.scatter(1, torch.where(real, blocks, width).view(rows, -1), variance.view(rows, -1))[:, :width]
