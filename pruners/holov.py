"""HoloV: budgets for crops of the picture by attention and by how varied they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
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
from vtc.pruners.primitives.precision import decides_on_host, wide, wide_dtype

from .base import Pruner
from .registry import register_pruner
from .signals import EncoderAttention, Signal
from .visual_tokens import VisualTokens

ENTRIES = 2**20  # of runs looked at together
STRIPS = 6  # a run's cosines to one part in so many of it are made first
ROUNDING = 1e-6  # more than a run's weight in float32 is off by


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
        sizes, budget = part_sizes(part, count).clamp(min=1), budgets_of(tokens)
        looked = part_sums(attention, part, count) / sizes
        varied = self._varied(tokens.features, edges, part, looked, sizes, budget)
        weight = looked + self.alpha * looked / (varied + 1e-6) * varied  # the mean of the run's scores
        weight = weight / weight.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)

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

    @torch.no_grad()
    def _varied(
        self, x: Tensor, edges: list[list[int]], part: Tensor, looked: Tensor, sizes: Tensor, budget: Tensor
    ) -> Tensor:
        """Mean variance of each run, `[B, P]`; less than that in rows where already it tells the budgets."""
        if not decides_on_host(x):
            return part_sums(self._variance(x, edges), part, looked.shape[1]) / sizes
        found = torch.zeros_like(looked)
        for row, ends in enumerate(edges):
            for first, count, length in _alike(ends, x.shape[2]):
                some = x[row, ends[first] :][: count * length].unflatten(0, (count, length))
                found[row, first : first + count] = _least_variance(some)
        open_ = (~self._decided(found, looked, sizes, budget)).nonzero()[:, 0]
        if len(open_):
            variance = self._variance(x[open_], [edges[row] for row in open_])
            found[open_] = (part_sums(variance, part[open_], looked.shape[1]) / sizes[open_]).to(found)
        return found

    def _decided(self, least: Tensor, looked: Tensor, sizes: Tensor, budget: Tensor) -> Tensor:
        """Whether every variance from the `least` one up gives a row's runs the same budgets, `[B]` bool."""
        ends = looked * (1 + self.alpha * least / (least + 1e-6)), looked * (1 + self.alpha)
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        low, high = (
            own / (own + other.sum(1, keepdim=True) - other) * (1 + slack)
            for own, other, slack in ((low, high, -ROUNDING), (high, low, ROUNDING))
        )
        whole = (low * budget).floor()
        more = (budget - whole.sum(1, keepdim=True)).clamp(0, low.shape[1]).long()
        order = low.argsort(1, descending=True)
        first = torch.arange(low.shape[1]) < more  # the runs that get one more
        above = low.gather(1, order).masked_fill(~first, float("inf")).amin(1)
        below = high.gather(1, order).masked_fill(first, float("-inf")).amax(1)
        known = (whole == (high * budget).floor()) & (whole < sizes) & (looked >= 0)  # NaN is not known
        return known.all(1) & (above > below)

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


def _alike(ends: list[int], width: int) -> Iterator[tuple[int, int, int]]:
    """Runs of one length that are looked at together: the first one, how many, and their length."""
    lengths, first = np.diff(ends).tolist(), 0
    while first < len(lengths):
        length = lengths[first]
        most = max(1, ENTRIES // (length * width))
        same = sum(1 for _ in itertools.takewhile(lambda n: n == length, lengths[first : first + most]))  # noqa: B023
        yield first, same, length
        first += same


def _least_variance(x: Tensor) -> Tensor:
    """Less than the means of ``_variance_of`` the runs `x [R, n, D]`, `[R]`: by their cosines to some tokens each."""
    n, some = x.shape[1], -(-x.shape[1] // STRIPS)
    x = wide(x)
    scale = torch.linalg.vector_norm(x, dim=2).clamp(min=1e-8).reciprocal()
    cosine = (x[:, :some] @ x.mT).mul_(scale[:, :some, None]).mul_(scale[:, None]).nan_to_num_(0, 0, 0)
    cosine.diagonal(dim1=1, dim2=2).zero_()
    others = max(1, n - 1)
    rest = cosine[:, :, some:]  # of the other tokens a part, which varies least about its own mean
    least = (rest - rest.mean(1, keepdim=True)).square_().sum((1, 2))
    return least.add_(cosine.sub_(cosine.sum(2, keepdim=True) / others).square_().sum((1, 2))) / (others * n)


def _variance_of(x: Tensor) -> Tensor:
    """Variance of each token's cosines to the others of `x` `[B, n, D]`, `[B, n]`."""
    gram = symmetric_products(x)
    scale = gram.diagonal(dim1=1, dim2=2).rsqrt().clamp(max=1e8)
    cosine = gram.mul_(scale[:, :, None]).mul_(scale[:, None]).nan_to_num_(0, 0, 0)
    cosine.diagonal(dim1=1, dim2=2).zero_()
    others = max(1, x.shape[1] - 1)
    mean = cosine.sum(-1, keepdim=True) / others
    return cosine.sub_(mean).square_().sum(-1) / others
