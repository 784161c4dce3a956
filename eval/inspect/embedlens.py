"""Finds the sink and dead tokens of a model: what its projected tokens have in common across images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.linalg import vector_norm

from vtc.pruners.primitives.nearest_rows import TINY, nearest_ids

from .options import Rules

STRAY = 0.25  # how much less than the others of its id a token may be like their mean
NONE = -1


@dataclass(frozen=True)
class Group:
    """Vocabulary ids whose tokens are alike, and those tokens over the calibration images.

    Attributes
    ----------
    ids : tuple of int
        Most frequent first.
    share : float
        Of all tokens.
    shares : tuple of float
        Smallest and largest share of an image.
    cosine : float
        Mean over pairs of tokens of different images.
    norm : float
        Mean norm, relative to that of all tokens.
    """

    ids: tuple[int, ...]
    share: float
    shares: tuple[float, float]
    cosine: float
    norm: float


@dataclass(frozen=True)
class FoundClass:
    """A class: its group, its mean unit vector `[D]` float32, and the cosine that tells its tokens from the others.

    ``found`` is the share of the group's tokens at or above ``threshold``, ``false`` that of the others.
    """

    kind: str
    group: Group
    direction: Tensor = field(repr=False)
    threshold: float
    found: float
    false: float


@dataclass(frozen=True)
class Found:
    """What a calibration found.

    Attributes
    ----------
    classes : tuple of FoundClass
        May be empty.
    others : tuple of Group
        Groups in nearly all images that are no class, largest first.
    cosine : float
        Mean over all pairs of tokens of different images: what any group has without being a class.
    images, tokens : int
        How many there were.
    """

    classes: tuple[FoundClass, ...]
    others: tuple[Group, ...]
    cosine: float
    images: int
    tokens: int

    def share(self, kind: str) -> float:
        """Of all tokens."""
        return sum(c.group.share for c in self.classes if c.kind == kind)


def across(sums: Tensor, counts: Tensor) -> Tensor:
    """Mean cosine of tokens of different images, between groups.

    Parameters
    ----------
    sums : Tensor
        `[M, C, D]`: per image and group the sum of its tokens' unit vectors.
    counts : Tensor
        `[M, C]`: how many they are.

    Returns
    -------
    Tensor
        `[C, C]`; NaN for groups that share no two images.

    Notes
    -----
    The sum over pairs of different images is that over all pairs less that within images: no pair is ever formed.
    """
    whole, number = sums.sum(0), counts.sum(0)
    total = whole @ whole.T - torch.einsum("iad,ibd->ab", sums, sums)
    return total / (number[:, None] * number - counts.T @ counts)


def best_threshold(cosine: Tensor, member: Tensor) -> tuple[float, float, float]:
    """Where a bar on `cosine` `[T]` parts the members best: the largest difference of the shares found of either side.

    Returns
    -------
    tuple of float
        The bar (halfway to the next value below), and the shares of members and of others at or above it.
    """
    value, order = cosine.sort(descending=True, stable=True)
    mine = member[order].double()
    inside = mine.cumsum(0) / mine.sum().clamp(min=1)
    outside = (1 - mine).cumsum(0) / (1 - mine).sum().clamp(min=1)
    # a bar can't part equal values
    last = torch.cat([value[1:] < value[:-1], torch.ones(1, dtype=torch.bool)])
    at = int(torch.where(last, inside - outside, -1.0).argmax())
    below = value[at + 1] if at + 1 < len(value) else value[at]
    return float((value[at] + below) / 2), float(inside[at]), float(outside[at])


def calibrate(features: Sequence[Tensor], table: Tensor, rules: Rules | None = None) -> Found:
    """Find the classes.

    Parameters
    ----------
    features : sequence of Tensor
        Projected tokens of each image, `[n_i, D]`, any float dtype.
    table : Tensor
        The input embedding table `[V, D]`.
    rules : Rules, optional
        Thresholds.

    Raises
    ------
    ValueError
        If there are fewer than two images, or the widths differ.

    Notes
    -----
    Every token is given its nearest vocabulary id, and of an id's tokens those count whose cosine with their mean is at
    most ``STRAY`` below the median: other tokens come near an id by chance. Ids in nearly all images are grouped by
    average linkage of the mean cosine of their tokens across images: first those alike to ``sink_cosine``, of which the
    small groups are sinks, then the others to ``dead_cosine``, of which the large ones are dead. So that a model whose
    tokens are all alike has no classes, a group's mean cosine must also be at least halfway from that of all tokens
    to 1.
    """
    rules = rules or Rules()
    if len(features) < 2:
        raise ValueError(f"a calibration compares images and needs at least 2, got {len(features)}")
    if any(x.dim() != 2 or x.shape[1] != table.shape[1] for x in features):
        raise ValueError(f"features must be [n, {table.shape[1]}] each, as wide as the embedding table")
    seen = _Seen.of(features, table)
    often = ((seen.counts > 0).double().mean(0) >= rules.presence).nonzero()[:, 0]
    least = (1 + seen.cosine) / 2
    classes: list[FoundClass] = []
    sinks, left = [], often
    for group in seen.groups(often, rules.sink_cosine):
        found = seen.measure(group)
        if found.cosine >= max(rules.sink_cosine, least) and found.share <= rules.sink_share:
            sinks.append(group)
            classes.append(seen.as_class("sink", found))
    if sinks:
        left = often[~torch.isin(often, torch.cat(sinks))]
    others: list[Group] = []
    for group in seen.groups(left, rules.dead_cosine):
        found = seen.measure(group)
        if found.cosine >= max(rules.dead_cosine, least) and found.share >= rules.dead_share:
            classes.append(seen.as_class("dead", found))
        else:
            others.append(found)
    tokens = sum(map(len, features))
    return Found(tuple(classes), tuple(sorted(others, key=lambda g: -g.share)), seen.cosine, len(features), tokens)


@dataclass
class _Seen:
    """Tokens with their ids (numbered from 0 in `names`, or ``NONE``), and how many of each there are per image."""

    unit: list[Tensor]
    norms: list[Tensor]
    ids: list[Tensor]
    names: Tensor
    counts: Tensor
    cosine: float

    @classmethod
    def of(cls, features: Sequence[Tensor], table: Tensor) -> _Seen:
        sizes = [len(x) for x in features]
        near = torch.cat([nearest_ids(x, table, 1)[:, 0].cpu() for x in features])
        norms = [vector_norm(x, dim=-1, dtype=torch.float32).cpu() for x in features]
        unit = [x.cpu().float() / n.clamp(min=TINY)[:, None] for x, n in zip(features, norms, strict=True)]
        names, numbered = near.unique(return_inverse=True)
        for _ in range(2):  # strays pull at the mean
            numbered = _without_strays(unit, numbered, len(names))
        ids = list(numbered.split(sizes))
        counts = torch.stack([torch.bincount(i[i != NONE], minlength=len(names)) for i in ids]).double()
        whole = torch.stack([u.double().sum(0) for u in unit])[:, None]
        cosine = across(whole, torch.tensor(sizes, dtype=torch.float64)[:, None])
        return cls(unit, norms, ids, names, counts, float(cosine))

    def sums(self, ids: Tensor) -> Tensor:
        """`[M, len(ids), D]` float64."""
        place = torch.full((len(self.names) + 1,), len(ids))  # its last place is that of ``NONE``
        place[ids] = torch.arange(len(ids))
        made = []
        for unit, mine in zip(self.unit, self.ids, strict=True):
            at = unit.new_zeros(len(ids) + 1, unit.shape[1], dtype=torch.float64)
            made.append(at.index_add_(0, place[mine], unit.double())[:-1])
        return torch.stack(made)

    def groups(self, ids: Tensor, cosine: float) -> list[Tensor]:
        """`ids` in groups that are alike to this mean cosine."""
        if len(ids) < 2:
            return [ids] if len(ids) else []
        alike = across(self.sums(ids), self.counts[:, ids]).nan_to_num(-1.0).numpy()
        distance = np.clip(1 - (alike + alike.T) / 2, 0, None)
        np.fill_diagonal(distance, 0)
        label = fcluster(linkage(squareform(distance, checks=False), "average"), 1 - cosine + 1e-9, "distance")
        return [ids[torch.from_numpy(label == one)] for one in np.unique(label)]

    def measure(self, group: Tensor) -> Group:
        """Statistics of a group."""
        counts = self.counts[:, group]
        mine, per_image = counts.sum(1, keepdim=True), torch.tensor([[float(len(u))] for u in self.unit])
        cosine = across(self.sums(group).sum(1, keepdim=True), mine)
        shares = (mine / per_image)[:, 0]
        inside = torch.cat([torch.isin(i, group) for i in self.ids])
        norms = torch.cat(self.norms)
        by_size = group[counts.sum(0).argsort(descending=True, stable=True)]
        return Group(
            tuple(self.names[by_size].tolist()),
            float(mine.sum() / per_image.sum()),
            (float(shares.min()), float(shares.max())),
            float(cosine),
            float(norms[inside].mean() / norms.mean().clamp(min=TINY)),
        )

    def as_class(self, kind: str, group: Group) -> FoundClass:
        """The direction of a group, and where it ends."""
        of = torch.isin(self.names, torch.tensor(group.ids)).nonzero()[:, 0]
        direction = self.sums(of).sum((0, 1))
        direction = (direction / vector_norm(direction)).float()
        member = torch.cat([torch.isin(i, of) for i in self.ids])
        cosine = torch.cat([u @ direction for u in self.unit])
        return FoundClass(kind, group, direction, *best_threshold(cosine, member))


def _without_strays(unit: Sequence[Tensor], ids: Tensor, many: int) -> Tensor:
    """`ids` `[T]` with ``NONE`` for tokens that are unlike the mean of their id's."""
    sizes = [len(u) for u in unit]
    place = ids.masked_fill(ids == NONE, many)
    sums = torch.zeros(many + 1, unit[0].shape[1])
    for u, mine in zip(unit, place.split(sizes), strict=True):
        sums.index_add_(0, mine, u)
    mean = sums / vector_norm(sums, dim=-1, keepdim=True).clamp(min=TINY)
    cosine = torch.cat([(u * mean[mine]).sum(-1) for u, mine in zip(unit, place.split(sizes), strict=True)])
    order = torch.from_numpy(np.lexsort((cosine.numpy(), place.numpy())))
    counts = torch.bincount(place, minlength=many + 1)
    middle = (counts.cumsum(0) - counts + counts // 2).clamp(max=len(place) - 1)
    median = cosine[order[middle]]
    return ids.masked_fill(cosine < median[place] - STRAY, NONE)
