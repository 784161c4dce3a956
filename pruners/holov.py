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
from vtc.pruners.primitives.merging import symmetric_products
from vtc.pruners.primitives.precision import wide, wide_dtype

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
        edges = self._edges(tokens)
        part, valid = self._part(tokens, edges), tokens.valid
        count = max(map(len, edges)) - 1
        attention = 1000 * raw.nan_to_num(0, 0, 0).masked_fill(~valid, 0)
        variance = self._variance(tokens.features, edges)
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

    def _edges(self, tokens: VisualTokens) -> list[list[int]]:
        """Where each row's runs begin, and where the last one ends."""
        runs = [min(self.crops, n) for n in tokens.counts]
        return [[i * n // count for i in range(count + 1)] for n, count in zip(tokens.counts, runs, strict=True)]

    @staticmethod
    def _part(tokens: VisualTokens, edges: list[list[int]]) -> Tensor:
        """Run of each token, `[B, N]`; padding has one of its own."""
        part = np.full(tuple(tokens.ids.shape), max(map(len, edges)) - 1)
        for row, ends in zip(part, edges, strict=True):
            row[: ends[-1]] = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
        return torch.from_numpy(part).to(tokens.ids.device)

    @staticmethod
    @torch.no_grad()
    def _variance(features: Tensor, edges: list[list[int]]) -> Tensor:
        """Variance of each token's cosines to the others of its run, `[B, N]` float32."""
        out = features.new_zeros(features.shape[:2], dtype=wide_dtype(features))
        for ends in {tuple(row) for row in edges}:  # rows of one length together
            rows = [i for i, row in enumerate(edges) if tuple(row) == ends]
            whole = len(rows) == len(edges)
            found = []
            for start, stop in itertools.pairwise(ends):
                x = features[:, start:stop]  # a run is whole: nothing is gathered
                found.append(_variance_of(x if whole else x[torch.tensor(rows, device=x.device)]))
            made = torch.cat(found, 1)
            if whole:
                out[:, : ends[-1]] = made
            else:
                out[torch.tensor(rows, device=out.device), : ends[-1]] = made
        return out


def _variance_of(x: Tensor) -> Tensor:
    """Variance of each token's cosines to the others of `x` `[B, n, D]`, `[B, n]`."""
    gram = symmetric_products(x)
    scale = gram.diagonal(dim1=1, dim2=2).rsqrt().clamp(max=1e8)
    cosine = gram.mul_(scale[:, :, None]).mul_(scale[:, None]).nan_to_num_(0, 0, 0)
    cosine.diagonal(dim1=1, dim2=2).zero_()
    others = max(1, x.shape[1] - 1)
    mean = cosine.sum(-1, keepdim=True) / others
    return cosine.sub_(mean).square_().sum(-1) / others
