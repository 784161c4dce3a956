"""Facility location: each step takes the candidate that raises most how well everything is covered."""

from __future__ import annotations

import torch
from torch import Tensor

from ..precision import decides_on_host, exact_dtype, settled, wide_dtype
from .rows import alike, copy_twins, fill_pairs, twins_among
from .steps import finite

BLOCK = 96  # tokens whose cosines are made together: wide copies of more would count beside the matrix
STRIP = 2**16  # entries of the matrix that are looked at together on the CPU
STRIPS = 4  # that it is looked at in elsewhere


def all_cosines(x: Tensor, usable: Tensor, above: int = 0) -> Tensor:
    """See ``greedy.all_cosines``."""
    rows, count, dtype = *x.shape[:2], wide_dtype(x)
    firsts = [twins_among(*one) for one in zip(x, usable, strict=True)] if decides_on_host(x) else []
    whole = x.new_zeros(rows, above + count, count, dtype=dtype)
    made = whole[:, above:]
    size = BLOCK if decides_on_host(x) else max(BLOCK, count // STRIPS)

    def unit(part: slice) -> Tensor:
        rows = x[:, part].detach().to(dtype, copy=True).masked_fill_(~usable[:, part, None], 0)
        return rows.div_(torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_(min=1e-8))

    fill_pairs(made, unit, alike, size)
    for row, first in zip(made, firsts, strict=False):
        copy_twins(row, first)
    return whole


def cover(covers: Tensor, k: int, bar: Tensor, weight: Tensor | None = None) -> Tensor:
    """See ``greedy.cover``."""
    if weight is None:
        weight = torch.ones_like(bar)
    else:
        bar, weight = finite(bar, weight)
    if decides_on_host(covers):
        found = [_cover_one(*row, k) for row in zip(covers, bar, weight, strict=True)]
        return torch.stack(found)
    return _cover_all(covers, bar.clone(), weight, k)


def _cover_one(covers: Tensor, bar: Tensor, weight: Tensor, k: int) -> Tensor:
    """Of one picture `[R, N]`: gains are kept, and brought up to date by what a choice covers better than before."""
    bar, weight, known = bar.double(), weight.double(), covers.new_zeros(len(covers))
    size = max(1, STRIP // covers.shape[1])
    gain = torch.zeros_like(bar)
    for part in covers.split(size):
        gain += part.double().clamp_(min=0).sum(0)
    scale, order = gain.amax(), []
    for _ in range(k):
        # differences of sums leave rounding where nothing is left to gain, and that must not choose
        order.append(int((bar + weight * settled(gain.clone(), scale)).argmax()))
        bar[order[-1]] = float("-inf")
        new = covers[:, order[-1]]
        for some in (new > known).nonzero()[:, 0].split(size):
            old = known[some, None].double()
            better = covers[some].double().clamp_(old, new[some, None].double())
            gain -= better.sub_(old).sum(0)
        known = torch.maximum(known, new)
    return torch.tensor(order)


def _cover_all(covers: Tensor, bar: Tensor, weight: Tensor, k: int) -> Tensor:
    """Of a batch, in steps that never wait for the device."""
    known = torch.zeros_like(covers[..., 0])
    size, order, dtype = max(1, covers.shape[1] // STRIPS), [], exact_dtype(covers.device)
    weight = weight.to(dtype)
    for _ in range(k):
        gain = torch.zeros_like(weight)
        for start in range(0, covers.shape[1], size):
            part = slice(start, start + size)
            gain += (covers[:, part] - known[:, part, None]).clamp_(min=0).sum(1, dtype=dtype)
        order.append((bar + weight * gain).argmax(-1, keepdim=True))
        bar.scatter_(1, order[-1], float("-inf"))
        new = covers.gather(2, order[-1][:, None].expand(-1, covers.shape[1], -1))
        known = torch.maximum(known, new[..., 0])
    return torch.cat(order, 1)
