"""How much a projector's output moves when its input does: zeroth-order sensitivity by the algebra of its layers.

The directions are the same for all tokens, and the first layer is linear: ``W1 (x_i +- h u_j)`` costs one row for each
token and one for each direction. The second is linear, too, so the difference is taken before it. Norms in front of the
first layer scale by a number that follows from ``|x|^2``, ``x.u`` and ``|u|^2``. Of the second matrix only lengths are
asked, and those its triangular factor (QR) gives as well: half of the products. It is made once for a weight and kept.

Everything is computed in float32, the difference of activations in float64 (where there is one: not on MPS). On the CPU
a token's differences are told by two numbers for all directions where there is no norm and float32 can't see it.
Weights stay as they were loaded and are widened a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.weak import WeakTensorKeyDictionary

from vtc.pruners.signals import PreProjector
from vtc.pruners.visual_tokens import VisualTokens

from .precision import decides_on_host, exact, wide, wide_dtype

CHUNK = 2**20  # numbers of a state at a time
ROWS = 1024  # of a weight at a time
STRIP = 256  # rows of a triangle at a time
UNSEEN = 2.0**-24  # as a share of the largest slope: half a step of float32
WORTH_FACTOR = 1024  # rows of a second matrix from which a triangle pays


@dataclass(frozen=True)
class Norm:
    """A norm over vectors of width D: its scale and shift `[D]`, and whether it takes the mean off (LayerNorm)."""

    scale: Tensor
    shift: Tensor | None
    epsilon: float
    centred: bool


@dataclass(frozen=True)
class Projector:
    """``W2 act(sum_p W1_p norm(x_p) + b)``, what a projector's output depends on up to a constant.

    ``first`` is `[P, H, D]`, one matrix for each part p of a token (patch, or all patches side by side: P = 1), and
    ``second`` `[D_out, H]`, both in their own dtype.
    ``pooled`` says that the token is the mean of its patches, ``triangular`` that ``second`` is zero left of its
    diagonal, another matrix with which all products have the same length.
    """

    first: Tensor
    bias: Tensor | None = None
    act: Callable[[Tensor], Tensor] | None = None
    second: Tensor | None = None
    norm: Norm | None = None
    pooled: bool = False
    triangular: bool = False


def read_projector(module: nn.Module, patches: int, width: int, rank: int | None = None) -> Projector:
    """Read the weights of a projector of tokens of `patches` vectors of `width`.

    Parameters
    ----------
    module : nn.Module
        LLaVA's (linear, activation, linear), InternVL's and Qwen's (a norm in front, of the token or of each patch),
        Mistral3's (a merging layer before the first), Idefics3's (one linear layer), Gemma3's (mean, norm, matrix).
    patches, width : int
        U and D_enc of the signal ``PreProjector``.
    rank : int, optional
        Replace the second matrix by its best approximation of this rank.

    Raises
    ------
    NotImplementedError
        For projectors of another make, and for quantised or offloaded weights.
    """
    leaves = [m for m in module.modules() if not any(m.children())]
    norms = [m for m in leaves if "norm" in type(m).__name__.lower()]
    linear = [m for m in leaves if isinstance(m, nn.Linear)]
    weights = [p for m in module.modules() for p in m.parameters(recurse=False)]
    kinds = "".join("n" if m in norms else "l" if isinstance(m, nn.Linear) else "a" for m in leaves)
    pooled = getattr(module, "mm_input_projection_weight", None)
    # a tensor that wraps others (torchao's) says that it holds floats, and fails in its own words when it is cut
    if any(
        p.is_meta or not p.is_floating_point() or p.dtype.itemsize < 2 or is_traceable_wrapper_subclass(p)
        for p in weights
    ):
        raise NotImplementedError(_REFUSED.format(type(module).__name__, "has quantised or offloaded weights"))
    if pooled is not None:
        return Projector(pooled.T[None], norm=_norm(norms[0]), pooled=True)
    merging = len(linear) == 3
    gated = len(linear) > 1 and linear[-1].in_features != linear[-2].out_features
    if kinds.removeprefix("n") not in ("l", "lal", "llal") or gated:
        raise NotImplementedError(_REFUSED.format(type(module).__name__, "has layers that vtc does not know"))
    matrix = linear[0].weight
    if merging:  # its input runs over the patches first, inside each channel
        matrix = matrix.float().unflatten(1, (width, patches)).transpose(1, 2).flatten(1)
        matrix = linear[1].weight.float() @ matrix
    norm = _norm(norms[0]) if norms else None
    split = norm is not None and norm.scale.numel() == width
    first = matrix.unflatten(1, (patches, width)).transpose(0, 1) if split else matrix[None]
    if len(linear) == 1:
        return Projector(first, norm=norm)
    act = next(m for m, kind in zip(leaves, kinds, strict=True) if kind == "a")
    bias = linear[-2].bias
    second, triangular = _second(linear[-1].weight, rank)
    return Projector(first, None if bias is None else bias.float(), act, second, norm, triangular=triangular)


_REFUSED = (
    "the sensitivity of {} can't be computed: it {}. Its weights must be whole and in floating point: leave the "
    "projector out of quantisation, offloading and LoRA, or use another importance"
)


def _norm(module: Any) -> Norm:
    scale: Tensor = module.weight.float()
    if type(module).__name__.startswith("Gemma"):
        scale = 1 + scale
    bias = getattr(module, "bias", None)
    epsilon = float(module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)
    return Norm(scale, None if bias is None else bias.float(), epsilon, isinstance(module, nn.LayerNorm))


_factors: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@torch.no_grad()
def _second(weight: Tensor, rank: int | None) -> tuple[Tensor, bool]:
    """A matrix with which all products have the lengths of the second one's, and whether it is triangular.

    With `rank` those of its best approximation, `[rank, H]`.
    """
    if rank is None or rank >= min(weight.shape):
        if weight.shape[0] < WORTH_FACTOR:
            return weight, False
        return _kept(weight, None, lambda w: torch.linalg.qr(w, mode="r").R), True

    def low_rank(whole: Tensor) -> Tensor:
        _, values, vectors = torch.linalg.svd(whole, full_matrices=False)
        return values[:rank, None] * vectors[:rank]  # the left vectors are orthonormal: they change no norm

    return _kept(weight, rank, low_rank), False


def _kept(weight: Tensor, what: int | None, make: Callable[[Tensor], Tensor]) -> Tensor:
    """What `make` makes of the float32 `weight`, until that changes or is gone."""
    version = 0 if weight.is_inference() else weight._version
    known = _factors.get(weight)
    if known is None or known[0] != (version, what):
        known = _factors[weight] = ((version, what), make(weight.to(wide_dtype(weight))))
    return known[1]


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
        lengths.append((flat[:, inside] @ rows.T).norm(dim=-1))
    return torch.stack(lengths).norm(dim=0).view(moved.shape[:-1])


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
