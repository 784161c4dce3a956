"""PruneSID: group tokens by principal components over the tokens, and drop look-alikes inside each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.best_per_part import best, columns_of, part_sizes, per_token
from vtc.pruners.primitives.greedy import all_cosines, barred, half_cosines
from vtc.pruners.primitives.greedy.half_matrix import HalfMatrix, is_large
from vtc.pruners.primitives.merging import mean_of_patches
from vtc.pruners.primitives.precision import decides_on_host, exact, exact_dtype, settled
from vtc.pruners.primitives.projector_sensitivity import drawn_directions

from .base import Pruner
from .registry import register_pruner
from .signals import PreProjector, Signal
from .visual_tokens import VisualTokens

MORE, ROUNDS = 8, 4  # further directions, and rounds, of the low-rank decomposition
BLOCK = 256  # tokens at a time, where more of them would be held twice


@register_pruner("prunesid")
@dataclass(kw_only=True)
class PruneSID(Pruner):
    """PruneSID (Fang et al., ICLR 2026, arXiv 2603.09480): synergistic importance and diversity.

    Parameters
    ----------
    keep : int or float
        N: tokens kept per span, exactly.
    per_group : int
        N / per_group groups. The paper's is 4.
    scale : float
        The threshold is N / scale times the mean cosine. The paper's is 32.

    Notes
    -----
    Stage: input. With x `[T, D]` what the projector reads and sigma the sigmoid::

        sigma(x) - mean over tokens of sigma(x) = V S U^T,  of rank K = floor(N / per_group)
        group g(i) = argmax_j |V_ij|,   importance s_i = |V_i,g(i)|
        rho = mean of cos(x_i, x_j) over pairs,  tau = N / scale * rho

    In each group tokens are taken by falling importance, and one whose cosine to a taken one is tau or more is left
    out; a group of n tokens keeps its first ``n N / T``. The decomposition is a randomised one from directions that are
    the same everywhere, in float64: O(T D K) time; the cosines take O(T^2 D) and a T x T matrix, of large pictures
    half of it.

    From the paper's formulas as third parties note them; the authors' code, which has no licence, was not read. Theirs
    round shares of the groups down; here the largest remainder makes the count exact, what a group is too small for
    goes to the others, and look-alikes come last. The paper's other variant, whose budget follows ``1 - rho`` from
    picture to picture, is left out: how was not to be had.
    """

    per_group: int = 4
    scale: float = 32.0

    paper: ClassVar[str] = "arXiv 2603.09480"
    signals: ClassVar[tuple[Signal, ...]] = (PreProjector(),)
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_group < 1:
            raise ValueError(f"prunesid.per_group={self.per_group!r} is out of range; it must be an int >= 1")
        if not self.scale > 0:
            raise ValueError(f"prunesid.scale={self.scale!r} is out of range; it must be a number > 0")

    @torch.no_grad()
    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """The first ones of each group, `[B, k]` ascending; span by span, since each has its own number of groups."""
        seen = mean_of_patches(tokens.read(self.signals[0])).to(tokens.ids.device)
        bar = torch.minimum(barred(seen), barred(tokens.features))
        found = []
        for row, (n, budget) in enumerate(zip(tokens.counts, tokens.budgets, strict=True)):
            kept = self._one(seen[row : row + 1, :n], bar[row : row + 1, :n] == 0, budget)
            found.append(torch.nn.functional.pad(kept, (0, k - budget)))
        return torch.cat(found)

    def _one(self, x: Tensor, usable: Tensor, k: int) -> Tensor:
        """What is kept of one span `x [1, T, D]`, `[1, k]`."""
        groups, last = max(1, k // self.per_group), x.shape[1]
        # settled: of two tokens alone both have the same
        importance, group = settled(principal(x[0], usable[0], groups).abs_())[None].max(-1)
        cosine = half_cosines(x, usable) if is_large(last) else all_cosines(x, usable)
        count = exact(usable.sum(1))
        if isinstance(cosine, HalfMatrix):
            sums = torch.cat([rows.sum(2) for rows in cosine.in_blocks(BLOCK)], 1)
            own = cosine.entries(torch.arange(last, device=x.device)[None])
        else:
            sums, own = cosine.sum(2), cosine.diagonal(0, 1, 2)
        pairs = sums.sum(1, dtype=count.dtype) - own.sum(1)
        threshold = k / self.scale * pairs / (count * (count - 1)).clamp(min=1)
        # by falling importance; what is not finite comes last
        order = importance.masked_fill(~usable, -1).sort(dim=1, descending=True, stable=True).indices
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(last, device=x.device)[None])
        turn = taken(cosine, group, rank.masked_fill(~usable, last), threshold[:, None], groups, k)
        quota = part_sizes(group.masked_fill(~usable, groups), groups) * (k / count)[:, None]
        key = torch.where(turn < k, per_token(quota, group) - turn, -1.0 * last - rank)
        budget = torch.full_like(order[:, :1], k)
        return columns_of(best(key, budget, torch.ones_like(usable)), k)


def principal(x: Tensor, usable: Tensor, rank: int) -> Tensor:
    """Loadings V `[T, rank]` of the `usable` tokens of `x [T, D]` on the principal components of ``sigmoid(x)``.

    Float64; zeros for the other tokens.
    """
    centred = x.new_empty(x.shape, dtype=exact_dtype(x.device))
    for made, part, there in zip(*(t.split(BLOCK) for t in (centred, x, usable[:, None])), strict=True):
        made.copy_(part).masked_fill_(~there, 0).sigmoid_().mul_(there)
    centred.sub_(centred.sum(0) / usable.sum().clamp(min=1)).mul_(usable[:, None])
    width = min(rank + MORE, *x.shape)
    found = centred @ drawn_directions(width, x.shape[1]).to(centred).mT
    for _ in range(ROUNDS):
        # products of few rows: of few columns they take many times as long
        found = centred @ (torch.linalg.qr(found).Q.mT @ centred).mT
    base = torch.linalg.qr(found).Q
    small = base.mT @ centred
    rotation = torch.linalg.eigh(small @ small.mT).eigenvectors.flip(-1)[:, :rank]
    return torch.nn.functional.pad(base @ rotation, (0, max(0, rank - width)))


def taken(
    cosine: Tensor | HalfMatrix, group: Tensor, rank: Tensor, threshold: Tensor, groups: int, steps: int
) -> Tensor:
    """Place of each token among those that its group takes, `[B, T]`; `steps` for those that are left out.

    Each step takes the first of every group by `rank [B, T]`, and leaves out what is like it, ``cosine >= threshold``.
    """
    last = rank.shape[1]
    left, turn = rank.clone(), torch.full_like(rank, steps)
    for step in range(steps):
        first = torch.full_like(left[:, :1], last).expand(-1, groups).scatter_reduce(1, group, left, "amin")
        if decides_on_host(rank) and bool((first == last).all()):
            break
        mine = first.gather(1, group)
        chosen = (left == mine) & (left < last)
        turn = torch.where(chosen, step, turn)
        place = torch.zeros_like(first).scatter_reduce(
            1, group, torch.where(chosen, torch.arange(last, device=left.device), 0), "amax"
        )
        place = place.gather(1, group)
        like = cosine.gather(2, place[..., None])[..., 0] if isinstance(cosine, Tensor) else cosine.entries(place)
        left = torch.where(chosen | ((like >= threshold) & (mine < last)), last, left)
    return turn
