"""Merging primitives: batched, deterministic, without a host sync, in float32. Ties go to the lowest index.

Sums over groups are scatters on the CPU alone: on a GPU, where their order differs from run to run, they are matrix
products with a 0/1 matrix; where the sums are only compared, in float64 that is ``settled``, they may be scatters.
Distances and the cosines of merged tokens decide what is compared next, and so are computed in float64 (see
``precision``).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .precision import decides_on_host, exact_dtype, settled, wide, wide_dtype

FAR = 1e9  # a distance that is not finite
WORTH_HALVING = 128  # tokens from which a symmetric product is worth taking apart
CHANNELS = 1024  # at a time in float32, so that half precision needs no second copy of the features


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index [B, K]` of `x [B, N, D]`, `[B, K, D]`."""
    # not a gather: on the CPU that widens half precision as a whole
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def channel_blocks(width: int, dtype: torch.dtype = torch.float32, given: torch.dtype | None = None) -> list[slice]:
    """Slices of `width` channels that are widened to `dtype` together, in float64 a quarter as many.

    With `given`, the dtype of what is widened, of half precision at most a quarter of the channels where that pays.
    """
    least = 256
    size = min(CHANNELS, max(least, width // 4)) if given is not None and given.itemsize < 4 else CHANNELS
    if dtype != torch.float32:
        size = max(1, size // 4) if size == CHANNELS else max(least // 2, size // 4)
    return [slice(start, start + size) for start in range(0, width, size)]


def mean_of_patches(x: Tensor) -> Tensor:
    """Mean over the patches of a token, `[B, N, U, d]` to `[B, N, d]`; of one patch that is itself, without a copy."""
    return x[:, :, 0] if x.shape[2] == 1 else x.mean(2)


def combine(weights: Tensor, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Weighted sums of the tokens `x [B, N, D]`, `[B, K, D]` float32 or `dtype`; what is not finite counts as 0."""
    made = weights.new_empty(*weights.shape[:2], x.shape[-1], dtype=dtype or wide_dtype(x))
    weights = weights.to(made)
    for c in channel_blocks(x.shape[-1], made.dtype, x.dtype):
        made[..., c] = weights @ x[..., c].to(made.dtype, copy=True).nan_to_num_(0, 0, 0)
    return made


def group_sums(
    x: Tensor, group: Tensor, count: int, member: Tensor, weight: Tensor | None = None, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Sums of the tokens of each group, and how many there are.

    Parameters
    ----------
    x : Tensor
        `[B, N, D]`; what is not finite counts as 0.
    group : Tensor
        `[B, N]` int64: the group of each token.
    count : int
        K, the number of groups; tokens of a group beyond them are left out.
    member : Tensor
        `[B, N]` bool: False leaves a token out.
    weight : Tensor, optional
        `[B, N]`: how many tokens each one stands for; default 1.
    dtype : torch.dtype, optional
        Of the sums; default float32 (float64 for float64).

    Returns
    -------
    sums : Tensor
        `[B, K, D]`.
    sizes : Tensor
        `[B, K]` float32: the sum of the weights.
    """
    if x.device.type != "cpu":
        inside = membership(group, count, member, weight)
        return combine(inside, x, dtype), inside.sum(2)
    dtype = dtype or wide_dtype(x)
    rows = x.shape[0]
    inside = member & (group >= 0) & (group < count)
    # one slot more in each row takes what is left out
    slot = torch.where(inside, group, count) + torch.arange(rows, device=x.device)[:, None] * (count + 1)
    share = torch.ones_like(group, dtype=torch.float32) if weight is None else wide(weight)
    sizes = share.new_zeros(rows * (count + 1)).index_add(0, slot.flatten(), share.flatten()).view(rows, -1)[:, :count]
    given, found = None if weight is None else share, None
    if decides_on_host(x):  # what is not finite spoils its sum
        found = _scattered(x, slot, rows * (count + 1), dtype, given, clean=False)
    if found is None or not _is_finite(found):
        found = _scattered(x, slot, rows * (count + 1), dtype, given, clean=True)
    return found.view(rows, count + 1, -1)[:, :count], sizes


def _is_finite(x: Tensor) -> bool:
    """Whether all numbers are, read on the host."""
    return x.numel() == 0 or all(end.isfinite().item() for end in x.detach().aminmax())


def _scattered(x: Tensor, slot: Tensor, slots: int, dtype: torch.dtype, share: Tensor | None, clean: bool) -> Tensor:
    """Sums `[slots, D]` of the tokens `x [B, N, D]`, each in its `slot [B, N]`; if `clean`, finite ones."""
    blocks = []
    for c in channel_blocks(x.shape[-1], dtype) if clean or share is not None or x.dtype != dtype else [slice(None)]:
        some = x[..., c].to(dtype)
        some = some.nan_to_num(0, 0, 0) if clean else some
        some = some if share is None else some * share[..., None]
        blocks.append(some.new_zeros(slots, some.shape[-1]).index_add(0, slot.flatten(), some.flatten(0, 1)))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, -1)


def add_weighted(made: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`made [B, K, D]` float32, to which the tokens `x [B, K, D]` are added by `weight [B, K, 1]`."""
    for c in channel_blocks(x.shape[-1], given=x.dtype):
        made[..., c] += wide(x[..., c]) * weight
    return made


def inner(a: Tensor, b: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Inner products of `a [B, N, D]` and `b [B, K, D]`, `[B, N, K]`, and the squared norms of each."""
    dtype = dtype or wide_dtype(a)
    found = left = right = a.new_zeros((), dtype=dtype)
    for c in channel_blocks(a.shape[-1], dtype, a.dtype):
        u, v = a[..., c].detach().to(dtype), b[..., c].detach().to(dtype)
        found = torch.baddbmm(found.expand(*u.shape[:2], v.shape[1]), u, v.transpose(1, 2))
        left, right = u.square().sum(-1) + left, v.square().sum(-1) + right
    return found, left, right


def symmetric_products(x: Tensor) -> Tensor:
    """Inner products of the tokens `x [B, n, D]` with one another, `[B, n, n]`; half is copied."""
    n, dtype = x.shape[1], wide_dtype(x)
    parts = 3 if n >= WORTH_HALVING else 1  # smaller products run slower than they save
    edges = [i * n // parts for i in range(parts + 1)]
    made = x.new_zeros(x.shape[0], n, n, dtype=dtype)
    for c in [slice(None)] if x.dtype == dtype else channel_blocks(x.shape[-1], dtype):
        some = x[..., c].to(dtype)
        for start, stop in itertools.pairwise(edges):
            made[:, start:stop, start:] += some[:, start:stop] @ some[:, start:].transpose(1, 2)
    for start, stop in itertools.pairwise(edges[1:]):
        made[:, start:stop, :start] = made[:, :start, start:stop].transpose(1, 2)
    return made


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of `a [B, N, D]` and `b [B, K, D]`, `[B, N, K]` float32; -1 where it is not finite."""
    return cosine_of(*inner(a, b))


def cosine_of(found: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Cosines `[B, N, K]` of what ``inner`` gives; -1 where it is not finite."""
    scale = left.sqrt()[..., None] * right.sqrt()[:, None]
    return found.div_(scale.clamp_(min=1e-12)).nan_to_num_(-1, -1, -1)


def squared_distances(a: Tensor, b: Tensor, longest: Tensor | None = None) -> Tensor:
    """Squared Euclidean distances over D of `a [B, N, D]` and `b [B, K, D]`, `[B, N, K]` float64; 1e9 if not finite.

    Without rounding (``settled``) in relation to the `longest` squared length, `[B]`; by default that of `b`, which `a`
    should be a part of.
    """
    found, left, right = inner(a, b, exact_dtype(a.device))
    scale = (right.nan_to_num(0, 0, 0).amax(1) if longest is None else longest)[:, None, None]
    found.mul_(-2).add_(left[..., None]).add_(right[:, None])
    return settled(found.clamp_(min=0), scale).div_(a.shape[-1]).nan_to_num_(FAR, FAR)


def nearest(similarity: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """The best column of each row.

    Parameters
    ----------
    similarity : Tensor
        `[B, N, K]`.
    allowed : Tensor
        `[B, K]` or `[B, N, K]` bool: the columns to choose from.

    Returns
    -------
    best : Tensor
        `[B, N]`, the largest similarity; -inf where no column is allowed.
    column : Tensor
        `[B, N]` int64, the lowest column that has it.
    """
    allowed = allowed[:, None] if allowed.dim() == 2 else allowed
    similarity = similarity.masked_fill(~allowed, float("-inf"))
    best = similarity.amax(-1, keepdim=True)
    return best[..., 0], (similarity == best).to(torch.int8).argmax(-1)


def largest(x: Tensor, m: int) -> Tensor:
    """Bool mask of the `m` largest entries of the last dimension, the lowest of equal ones, never -inf."""
    m = min(m, x.shape[-1])
    least = x.topk(m, dim=-1).values[..., -1:]  # the value is defined on every device, the order of equal ones is not
    above, equal = x > least, (x == least) & (x > float("-inf"))
    room = m - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room))


def membership(group: Tensor, count: int, member: Tensor, weight: Tensor | None = None) -> Tensor:
    """`[B, count, N]` float32: 1 (or the token's `weight [B, N]`) where token n is a `member` of a group, else 0."""
    inside = (group[:, None] == torch.arange(count, device=group.device)[:, None]) & member[:, None]
    return inside.float() if weight is None else inside * wide(weight)[:, None]
