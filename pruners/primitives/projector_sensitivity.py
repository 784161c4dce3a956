"""How much a projector's output moves when its input does: zeroth-order sensitivity by the algebra of its layers.

The directions are the same for all tokens, and the first layer is linear: ``W1 (x_i +- h u_j)`` costs one row for each
token and one for each direction. The second is linear, too, so the difference is taken before it. Norms in front of the
first layer scale by a number that follows from ``|x|^2``, ``x.u`` and ``|u|^2``.

Everything is computed in float32, the difference of activations in float64 (where there is one: not on MPS). On the CPU
a token's differences are told by two numbers for all directions where there is no norm and float32 can't see it.
Weights stay as they were loaded and are widened a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vtc.pruners.signals import PreProjector
from vtc.pruners.visual_tokens import VisualTokens

from .precision import decides_on_host, exact, wide, wide_dtype
from .projector import Projector, read_projector

CHUNK = 2**20  # numbers of a state at a time
ROWS = 1024  # of a weight at a time
STRIP = 256  # rows of a triangle at a time
UNSEEN = 2.0**-24  # as a share of the largest slope: half a step of float32


@torch.no_grad()
def sensitivity(x: Tensor, projector: Projector, directions: Tensor, step: float) -> Tensor:
    """Mean length of the output's change along given directions.

    ``S_i = mean_j || M(x_i + h u_j) - M(x_i - h u_j) || / (2 h)``

    Parameters
    ----------
    x : Tensor
        `[M, U, D]` tokens as the projector M reads them.
    projector : Projector
        Its weights.
    directions : Tensor
        `[m, U * D]`, made unit vectors here; one direction moves all patches of a token.
    step : float
        h.

    Returns
    -------
    Tensor
        `[M]` float32.
    """
    norm, first = projector.norm, projector.first
    u = directions.to(x.device, wide_dtype(x))
    u = _parts((u / (u.norm(dim=-1, keepdim=True) + 1e-12)).unflatten(1, (x.shape[1], -1)), projector)
    bias = u.new_zeros(first.shape[1]) if projector.bias is None else projector.bias
    if norm is not None and norm.shift is not None:
        bias = bias + sum(_times(norm.shift[None], w) for w in first)[0]  # type: ignore[index]
    along = _first(u, projector)
    widest = max(first.shape[1], 0 if projector.second is None else min(ROWS, len(projector.second)))
    # a longer product runs faster, and without a norm there is no more than one such state at a time
    size = max(1, (2 if norm is None else 1) * CHUNK // (len(u) * widest))
    return torch.cat([_moves(_parts(some, projector), u, along, bias, projector, step) for some in x.split(size)])


def _parts(x: Tensor, projector: Projector) -> Tensor:
    """`x` `[M, U, D]` in the parts that the first layer tells apart, `[M, P, D]`; a LayerNorm's without their means."""
    x = wide(x)
    if projector.pooled:
        x = x.mean(1, keepdim=True)
    elif len(projector.first) == 1:
        x = x.flatten(1)[:, None]
    return x - x.mean(-1, keepdim=True) if projector.norm is not None and projector.norm.centred else x


def _times(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` in the dtype of `x`."""
    if weight.dtype == x.dtype:
        return x @ weight.T
    return torch.cat([x @ rows.to(x.dtype).T for rows in weight.split(ROWS)], -1)


def _first(x: Tensor, projector: Projector) -> Tensor:
    """What the first matrices make of each part, `[M, P, D]` to `[M, P, H]`, before the norm's number is known."""
    x = x if projector.norm is None else x * projector.norm.scale
    return torch.stack([_times(x[:, p], weight) for p, weight in enumerate(projector.first)], 1)


def _moves(x: Tensor, u: Tensor, along: Tensor, bias: Tensor, projector: Projector, step: float) -> Tensor:
    """``sensitivity`` of a few tokens `[c, P, D]`; `along` `[m, P, H]` are the directions behind the first layer.

    Between the two ends ``centre +- half`` the difference is taken so that what they share never cancels out.
    """
    at = _first(x, projector)
    if projector.norm is None:
        centre, half = at.sum(1)[:, None] + bias, step * along.sum(1)[None]
    else:
        width = x.shape[-1]
        across = 2 * step * torch.einsum("cpd,mpd->cmp", x, u) / width
        power = x.square().sum(-1)[:, None] / width + step**2 * u.square().sum(-1) / width + projector.norm.epsilon
        more, less = (power + across).rsqrt(), (power - across).rsqrt()
        mean, change = (more + less) / 2, -across * (more * less).square() / (more + less)
        # one number for each token, direction and part
        of_tokens, of_directions = "cmp,cph->cmh", "cmp,mph->cmh"
        centre = torch.einsum(of_tokens, mean, at) + step * torch.einsum(of_directions, change, along) + bias
        half = torch.einsum(of_tokens, change, at) + step * torch.einsum(of_directions, mean, along)
    act = projector.act
    smooth = None if act is None or projector.norm is not None else _smooth(act, exact(centre), half)
    if act is None:
        moved = 2 * half
    elif smooth is not None:
        slope, bend = (x.to(at.dtype) for x in smooth)
        moved = (slope * half).addcmul_(bend, half.pow(3))
    else:  # float32 would leave three digits of the difference, and its noise decide close choices
        pieces = zip(*(x.expand(len(at), -1, -1).split(-(-len(at) // 2)) for x in (centre, half)), strict=True)
        moved = torch.cat([_difference(act, exact(c), exact(t)).to(at.dtype) for c, t in pieces])
    return (_lengths(moved, projector).mean(-1) / (2 * step)).expand(len(x))


def _difference(act: Callable[[Tensor], Tensor], centre: Tensor, half: Tensor) -> Tensor:
    return act(centre + half).sub_(act(centre - half))


def _smooth(act: Callable[[Tensor], Tensor], centre: Tensor, half: Tensor) -> tuple[Tensor, Tensor] | None:
    """``act(c + t) - act(c - t)`` as ``slope t + bend t^3``, of each `centre` c and every t up to the largest `half`.

    One pair of numbers for a token and all directions, `[c, 1, H]` each. None where that would be seen in float32 (a
    kink, a large step), and where values may not be read.
    """
    if not decides_on_host(centre):
        return None
    most = half.abs().amax().item()
    if not 0 < most < float("inf"):
        return None

    def over(t: float) -> Tensor:
        return act(centre + t).sub_(act(centre - t)).div_(t)

    inner, outer = most / 2, most
    slope = over(inner)
    bend = (over(outer) - slope) / (outer**2 - inner**2)
    slope -= bend * inner**2
    between = 0.75 * most
    error = (over(between) - slope).sub_(bend, alpha=between**2).abs_().amax()
    return (slope, bend) if bool(error <= UNSEEN * slope.abs().amax()) else None


def _lengths(moved: Tensor, projector: Projector) -> Tensor:
    """Lengths of `moved` `[.., H]` behind the second layer."""
    second = projector.second
    if second is None:
        return moved.norm(dim=-1)
    flat, lengths = moved.flatten(0, -2), []
    size = STRIP if projector.triangular else ROWS
    for start in range(0, len(second), size):
        inside = slice(start if projector.triangular else 0, None)
        rows = second[start : start + size, inside].to(moved.dtype)
        lengths.append((flat[:, inside] @ rows.T).norm(dim=-1).view(moved.shape[:-1]))
    return torch.stack(lengths).norm(dim=0)


def drawn_directions(count: int, width: int, seed: int = 0) -> Tensor:
    """`[count, width]` normal numbers of a seed, drawn on the CPU: the same on every device and for every batch."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def projector_sensitivity(tokens: VisualTokens, directions: Tensor, step: float, rank: int | None = None) -> Tensor:
    """``sensitivity`` of the model's own projector at each token, `[B, N]`; needs the signal ``PreProjector()``."""
    x = tokens.read(PreProjector())
    projector = read_projector(tokens.projector, x.shape[-2], x.shape[-1], rank)
    device = projector.first.device
    found = sensitivity(x.flatten(0, 1).to(device), projector, directions.to(device), step)
    return found.view(x.shape[:2]).to(tokens.ids.device)
