"""PruneSID: group tokens by principal components over the tokens, and drop look-alikes inside each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.best_per_part import best, budgets_of, columns_of, part_sizes, per_token
from vtc.pruners.primitives.greedy import all_cosines, barred
from vtc.pruners.primitives.merging import mean_of_patches
from vtc.pruners.primitives.precision import decides_on_host, exact
from vtc.pruners.primitives.projector_sensitivity import drawn_directions

from .base import Pruner
from .registry import register_pruner
from .signals import PreProjector, Signal
from .visual_tokens import VisualTokens

MORE, ROUNDS = 8, 4  # further directions, and rounds, of the low-rank decomposition


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
    the same everywhere, in float64: O(T D K) time; the cosines take O(T^2 D) and a T x T matrix.

    From the paper's formulas as third parties note them; the authors' code, which has no licence, was not read. Theirs
    round shares of the groups down; here the largest remainder makes the count exact, what a group is too small for
    goes to the others, and look-alikes come last. The paper's other variant, whose budget follows ``1 - rho`` from
    picture to picture, is left out: how was not to be had. It cascades: components of like strength mix, and with them
    groups.
    """

    per_group: int = 4
    scale: float = 32.0

    paper: ClassVar[str] = "arXiv 2603.09480"
    signals: ClassVar[tuple[Signal, ...]] = (PreProjector(),)
    cascades: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_group < 1:
            raise ValueError(f"prunesid.per_group={self.per_group!r} is out of range; it must be an int >= 1")
        if not self.scale > 0:
            raise ValueError(f"prunesid.scale={self.scale!r} is out of range; it must be a number > 0")

    @torch.no_grad()
    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """The first ones of each group, `[B, k]` ascending."""
        x = mean_of_patches(tokens.read(self.signals[0])).to(tokens.ids.device)
        usable = (barred(x) == 0) & (barred(tokens.features) == 0)
        groups = max(1, k // self.per_group)
        loading = principal(x, usable, groups).abs()
        importance, group = loading.max(-1)
        cosine = all_cosines(x, usable)
        count = usable.sum(1).double()
        rho = (cosine.sum((1, 2), dtype=torch.float64) - cosine.diagonal(0, 1, 2).sum(1)) / (count * (count - 1)).clamp(
            min=1
        )
        # by falling importance; what is not finite comes last
        order = importance.masked_fill(~usable, -1).sort(dim=1, descending=True, stable=True).indices
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=x.device).expand_as(order)
        )
        turn = taken(cosine, group, rank.masked_fill(~usable, len(rank[0])), (k / self.scale * rho)[:, None], groups, k)
        sizes = part_sizes(group.masked_fill(~usable, groups), groups)
        quota = sizes * (k / count)[:, None]
        key = torch.where(turn < k, per_token(quota, group) - turn, -1.0 * x.shape[1] - rank)
        return columns_of(best(key, budgets_of(tokens), tokens.valid), k)


def principal(x: Tensor, usable: Tensor, rank: int) -> Tensor:
    """Loadings V `[B, T, rank]` of the `usable` tokens on the principal components of ``sigmoid(x)``; others are 0."""
    centred = exact(x).masked_fill(~usable[..., None], 0).sigmoid_().mul_(usable[..., None])
    mean = centred.sum(1, keepdim=True) / usable.sum(1).clamp(min=1)[:, None, None]
    centred.sub_(mean).mul_(usable[..., None])
    width = min(rank + MORE, *centred.shape[1:])
    found = centred @ drawn_directions(width, x.shape[-1]).to(centred).mT
    for _ in range(ROUNDS):
        found = centred @ (centred.mT @ torch.linalg.qr(found).Q)
    base = torch.linalg.qr(found).Q
    small = base.mT @ centred
    rotation = torch.linalg.eigh(small @ small.mT).eigenvectors.flip(-1)[..., :rank]
    loading = base @ rotation
    return torch.nn.functional.pad(loading, (0, rank - loading.shape[-1]))


def taken(cosine: Tensor, group: Tensor, rank: Tensor, threshold: Tensor, groups: int, steps: int) -> Tensor:
    """Place of each token among those that its group takes, `[B, T]`; `steps` for those that are left out.

    Each step takes the first of every group by `rank [B, T]`, and leaves out what is like it, ``cosine >= threshold``.
    """
    last = rank.shape[1]
    left, turn = rank.clone(), torch.full_like(rank, steps)
    for step in range(steps):
        first = torch.full_like(left[:, :1], last).expand(-1, groups).scatter_reduce(1, group, left, "amin")
        if decides_on_host(cosine) and bool((first == last).all()):
            break
        mine = first.gather(1, group)
        chosen = (left == mine) & (left < last)
        turn = torch.where(chosen, step, turn)
        place = torch.zeros_like(first).scatter_reduce(
            1, group, torch.where(chosen, torch.arange(last, device=left.device), 0), "amax"
        )
        like = cosine.gather(2, place.gather(1, group)[..., None])[..., 0]
        left = torch.where(chosen | ((like >= threshold) & (mine < last)), last, left)
    return turn
