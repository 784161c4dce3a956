"""Clustering by density peaks (DPC-kNN), batched and without a host sync."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .merging import FAR, inner, squared_distances
from .precision import decides_on_host, exact_dtype, held_together, wide, wide_dtype
from .ranking import rankable, top_k

ROWS = 64, 512  # of the distances at a time, in float64: from and to, an eighth of the features


class Clusters(NamedTuple):
    """``centres [B, C]`` columns, best first; ``owner [B, N]`` the cluster of each column, C for padding."""

    centres: Tensor
    owner: Tensor


def pair_distances(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Euclidean distances over ``sqrt(D)`` of the rows of `x` `[B, N, D]`, `[B, N, N]` float64; inf at padding."""
    distance = squared_distances(x, x).sqrt_()
    whole = x.isfinite().all(-1)
    distance.masked_fill_(~(whole[:, None] & whole[:, :, None]), FAR)
    # exactly symmetric: two that are each other's nearest must have the same density
    distance = (distance + distance.transpose(1, 2)) / 2
    distance.diagonal(dim1=1, dim2=2).zero_()
    return distance if valid is None else distance.masked_fill(~(valid[:, None] & valid[:, :, None]), float("inf"))


def density_peaks(
    distance: Tensor, neighbours: int | Tensor, valid: Tensor | None = None, most: int | None = None
) -> Tensor:
    """Score of each row as a cluster centre: its density times its distance from the nearest denser row.

    Parameters
    ----------
    distance : Tensor
        `[B, N, N]` from ``pair_distances``.
    neighbours : int or Tensor
        How many nearest rows, itself included, the density looks at; one for all or `[B]` int64.
    valid : Tensor, optional
        `[B, N]` bool.
    most : int, optional
        Upper bound of `neighbours` where that is a tensor.

    Returns
    -------
    Tensor
        `[B, N]`, the LOGARITHM of the score. The density is ``exp(-mean d^2)``, which would vanish for large
        distances; logarithms rank alike. Padding holds -inf.
    """
    n = distance.shape[-1]
    width = min(n, neighbours if isinstance(neighbours, int) else (most or n))
    near = distance.square().topk(width, dim=-1, largest=False).values
    counted = torch.arange(width, device=distance.device) < (
        neighbours[:, None, None] if isinstance(neighbours, Tensor) else neighbours
    )
    counted = counted & near.isfinite()
    density = -near.masked_fill(~counted, 0).sum(-1) / counted.sum(-1).clamp(min=1)
    if valid is not None:
        density = density.masked_fill(~valid, float("-inf"))
    farthest = distance.masked_fill(distance.isinf(), 0).flatten(1).amax(1)[:, None]
    denser = density[:, None, :] > density[:, :, None]
    separation = distance.masked_fill(~denser, float("inf")).amin(-1)
    separation = torch.where(separation.isfinite(), separation, farthest)
    return density + separation.log()


def dpc_knn(
    x: Tensor, clusters: int | Tensor, neighbours: int | Tensor, most: int, valid: Tensor | None = None
) -> Clusters:
    """Density-peak clustering with k nearest neighbours (Du et al. 2016).

    Parameters
    ----------
    x : Tensor
        `[B, N, D]`.
    clusters, neighbours : int or Tensor
        How many, one for all or `[B]` int64.
    most : int
        C: an upper bound of both, so that nothing has to be read.
    valid : Tensor, optional
        `[B, N]` bool.

    Returns
    -------
    Clusters
        Centres are the rows with the best score, ties to the lowest column; every row belongs to its nearest centre, a
        centre to itself. Centres beyond `clusters` own nothing.

    Notes
    -----
    O(N^2 D) time, some N x N matrices, on the CPU of one row of the batch at a time. The usual implementation adds
    noise of 1e-6 to the densities to break ties; ties go to the lowest column here.
    """
    batch, n = x.shape[:2]
    everything = torch.ones(batch, n, dtype=torch.bool, device=x.device) if valid is None else valid
    given = (clusters, neighbours)
    counts = (c if isinstance(c, Tensor) else torch.full((batch,), c, device=x.device) for c in given)
    found = [_peaks(min(most, n), *some) for some in held_together(x, *counts, everything)]
    return Clusters(*map(torch.cat, zip(*found, strict=True)))


def _peaks(most: int, x: Tensor, clusters: Tensor, neighbours: Tensor, everything: Tensor) -> Clusters:
    """``dpc_knn`` of rows whose matrices are held together."""
    batch, n = x.shape[:2]
    distance = pair_distances(x, everything)
    score = rankable(density_peaks(distance, neighbours, everything, most), everything)
    centres = top_k(score, most)
    rank = torch.arange(most, device=x.device)
    used = (rank < clusters[:, None]) & everything.gather(1, centres)
    to_centre = distance.gather(2, centres[:, None].expand(-1, n, -1)).masked_fill(~used[:, None], float("inf"))
    owner = (to_centre == to_centre.amin(-1, keepdim=True)).to(torch.int8).argmax(-1)
    own = torch.full((batch, n + 1), -1, device=x.device).scatter(
        1, torch.where(used, centres, n), rank.expand(batch, -1)
    )
    owner = torch.where(own[:, :n] >= 0, own[:, :n], owner)
    return Clusters(centres, owner.masked_fill(~everything, most))


def cluster_means(x: Tensor, owner: Tensor, clusters: int) -> Tensor:
    """Mean of the rows of each cluster, `[B, clusters, D]` float32; zeros for empty ones. Owners out of range: none."""
    batch, _, width = x.shape
    index = torch.where((owner >= 0) & (owner < clusters), owner, clusters)
    total = torch.zeros(batch, clusters + 1, width, device=x.device, dtype=wide_dtype(x))
    total = total.scatter_add(1, index[..., None].expand_as(x), wide(x))
    ones = torch.ones_like(index, dtype=torch.float32)
    count = torch.zeros(batch, clusters + 1, device=x.device).scatter_add(1, index, ones)
    return (total / count.clamp(min=1)[..., None])[:, :clusters]


def peaks_in_blocks(x: Tensor, free: Tensor, neighbours: int | Tensor, most: int | None = None) -> Tensor:
    """``density_peaks`` of the `free [F, P]` rows of `x [F, P, D]`, some at a time: no P x P matrix is kept.

    `[F, P]` float64; the lowest for what is not finite, -inf for what is not free. `neighbours` may differ, `[F]`
    int64 of at most `most`.
    """
    wanted = neighbours if isinstance(neighbours, int) else neighbours[:, None, None]
    longest = inner(x[:, :1], x, exact_dtype(x.device))[2].nan_to_num(0, 0, 0).amax(1)

    def distances(some: Tensor | slice, first: int) -> Tensor:
        """Squared distances over D of some tokens to those from `first` on, `[F, n, P - first]`; inf if not free."""
        distance = squared_distances(x[:, some], x[:, first:], longest)
        return distance.masked_fill_(~(free[:, some, None] & free[:, None, first:]), float("inf"))

    size = max(ROWS[0], min(ROWS[1], x.shape[2] * x.element_size() // 64))
    width = neighbours if isinstance(neighbours, int) else most or x.shape[1]
    near, farthest = _Nearest(free, width), x.new_zeros(len(x), dtype=longest.dtype)
    for start in range(0, x.shape[1], size):
        stop = min(start + size, x.shape[1])
        distance = distances(slice(start, stop), start)  # what is left of them they are to earlier ones
        distance.diagonal(0, 1, 2).masked_fill_(free[:, start:stop], 0)
        near.add(slice(start, stop), distance, start)
        near.add(slice(stop, None), distance[..., stop - start :].mT, start)
        farthest = torch.maximum(farthest, distance.masked_fill_(distance.isinf(), 0).flatten(1).amax(1))
    counted = near.value.isfinite() & (torch.arange(near.value.shape[2], device=x.device) < wanted)
    density = -near.value.masked_fill(~counted, 0).sum(-1) / counted.sum(-1).clamp(min=1)
    denser = density.gather(1, near.place.flatten(1)).view_as(near.value) > density[..., None]
    separation = near.value.masked_fill(~denser, float("inf")).amin(2)
    # mostly one of the nearest is denser; where it is not, all are looked at
    rest = torch.arange(x.shape[1], device=x.device)
    if decides_on_host(x):
        rest = (free & separation.isinf()).any(0).nonzero()[:, 0]
    for some in rest.split(size):
        distance = distances(some, 0)
        separation[:, some] = distance.masked_fill_(density[:, None] <= density[:, some, None], float("inf")).amin(2)
    # the densest: as far as any two of the frame
    separation = torch.where(separation.isinf(), farthest[:, None], separation)
    return rankable(density + separation.log() / 2, free)


class _Nearest:
    """The `width` least distances of each token `[F, P]`, itself included, and to whom."""

    def __init__(self, free: Tensor, width: int):
        width = min(width, free.shape[1])
        self.value = torch.full((*free.shape, width), float("inf"), dtype=exact_dtype(free.device), device=free.device)
        self.place = torch.zeros_like(self.value, dtype=torch.int64)

    def add(self, some: slice, distance: Tensor, first: int) -> None:
        """Take in the `distance` `[F, n, m]` of some tokens to those from `first` on."""
        width = self.value.shape[2]
        value, place = distance.topk(min(width, distance.shape[2]), dim=-1, largest=False)
        values, places = torch.cat([self.value[:, some], value], 2), torch.cat([self.place[:, some], place + first], 2)
        value, order = values.topk(width, dim=-1, largest=False)
        self.value[:, some], self.place[:, some] = value, places.gather(2, order)
