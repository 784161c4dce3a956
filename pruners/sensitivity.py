"""How much a projector's output moves when its input does: zeroth-order sensitivity by the algebra of its layers.

The directions are the same for all tokens, and the first layer is linear: ``W1 (x_i +- h u_j)`` costs one row for each
token and one for each direction. The second is linear, too, so the difference is taken before it. Norms in front of the
first layer scale by a number that follows from ``|x|^2``, ``x.u`` and ``|u|^2``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from .base import VisualTokens
from .signals import PreProjector

CHUNK = 2**21  # numbers of a state at a time


@dataclass(frozen=True)
class Norm:
    """A norm over vectors of width D: its scale and shift `[D]`, and whether it takes the mean off (LayerNorm)."""

    scale: Tensor
    shift: Tensor | None
    epsilon: float
    centred: bool


@dataclass(frozen=True)
class Projector:
    """``W2 act(sum_p W1_p norm(x_p) + b)`` in float32; what a projector's output depends on up to a constant.

    ``first`` is `[P, H, D]`, one matrix for each part p of a token (patch, or all patches side by side: P = 1).
    ``pooled`` says that the token is the mean of its patches.
    """

    first: Tensor
    bias: Tensor | None = None
    act: Callable[[Tensor], Tensor] | None = None
    second: Tensor | None = None
    norm: Norm | None = None
    pooled: bool = False


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
    if any(p.is_meta or not p.is_floating_point() or p.dtype.itemsize < 2 for p in weights):
        raise NotImplementedError(_REFUSED.format(type(module).__name__, "has quantised or offloaded weights"))
    if pooled is not None:
        return Projector(pooled.float().T[None], norm=_norm(norms[0]), pooled=True)
    merging = len(linear) == 3
    if kinds.removeprefix("n") not in ("l", "lal", "llal"):
        raise NotImplementedError(_REFUSED.format(type(module).__name__, "has layers that vtc does not know"))
    matrix = linear[0].weight.float()
    if merging:  # its input runs over the patches first, inside each channel
        matrix = matrix.unflatten(1, (width, patches)).transpose(1, 2).flatten(1)
        matrix = linear[1].weight.float() @ matrix
    norm = _norm(norms[0]) if norms else None
    split = norm is not None and norm.scale.numel() == width
    first = matrix.unflatten(1, (patches, width)).transpose(0, 1) if split else matrix[None]
    if len(linear) == 1:
        return Projector(first, norm=norm)
    act = next(m for m, kind in zip(leaves, kinds, strict=True) if kind == "a")
    bias = linear[-2].bias
    return Projector(first, None if bias is None else bias.float(), act, _second(linear[-1].weight, rank), norm)


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


def _second(weight: Tensor, rank: int | None) -> Tensor:
    """The second matrix, or `[rank, H]` with which all products have the norms of its best approximation of `rank`."""
    if rank is None or rank >= min(weight.shape):
        return weight.float()
    version = 0 if weight.is_inference() else weight._version
    known = _factors.get(weight)
    if known is None or known[0] != (version, rank):
        _, values, vectors = torch.linalg.svd(weight.float(), full_matrices=False)
        # the left vectors are orthonormal: they change no norm
        known = _factors[weight] = ((version, rank), values[:rank, None] * vectors[:rank])
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
    patches = x.shape[1]
    x = x.float()
    u = directions.to(x) / (directions.to(x).norm(dim=-1, keepdim=True) + 1e-12)
    u = u.unflatten(1, (patches, -1))
    if projector.pooled:
        x, u = x.mean(1, keepdim=True), u.mean(1, keepdim=True)
    elif projector.first.shape[0] == 1:
        x, u = x.flatten(1)[:, None], u.flatten(1)[:, None]
    norm, first = projector.norm, projector.first
    hidden = first.shape[1]
    bias = x.new_zeros(hidden) if projector.bias is None else projector.bias
    if norm is not None:
        if norm.centred:
            x, u = x - x.mean(-1, keepdim=True), u - u.mean(-1, keepdim=True)
        if norm.shift is not None:
            bias = bias + (first @ norm.shift).sum(0)
        first = first * norm.scale
    along = torch.einsum("mpd,phd->mph", u, first)
    widest = max(hidden, 0 if projector.second is None else len(projector.second))
    size = max(1, CHUNK // (len(u) * widest))
    return torch.cat([_moves(part, u, along, first, bias, projector, step) for part in x.split(size)])


def _moves(
    x: Tensor, u: Tensor, along: Tensor, first: Tensor, bias: Tensor, projector: Projector, step: float
) -> Tensor:
    """``sensitivity`` of a few tokens `[c, P, D]`; `along` `[m, P, H]` are the directions behind the first layer."""
    at = torch.einsum("cpd,phd->cph", x, first)
    norm = projector.norm
    if norm is None:
        base, move = at.sum(1)[:, None] + bias, step * along.sum(1)
        # a linear map moves all tokens alike: rounding must not make a difference between them
        base = torch.zeros_like(base) if projector.act is None else base
        ends = [base + move, base - move]
    else:
        square, across = x.square().sum(-1)[:, None], 2 * step * torch.einsum("cpd,mpd->cmp", x, u)
        far = step**2 * u.square().sum(-1)
        ends = []
        for sign in (1, -1):
            power = (square + sign * across + far) / x.shape[-1]
            scale = (power + norm.epsilon).rsqrt()
            end = torch.einsum("cmp,cph->cmh", scale, at) + bias
            ends.append(end.add_(torch.einsum("cmp,mph->cmh", scale, along), alpha=sign * step))
    if projector.act is not None:
        ends = [projector.act(end) for end in ends]
    change = ends[0].sub_(ends[1])
    if projector.second is not None:
        change = change @ projector.second.T
    return change.norm(dim=-1).mean(-1) / (2 * step)


def drawn_directions(count: int, width: int, seed: int = 0) -> Tensor:
    """`[count, width]` normal numbers of a seed, drawn on the CPU: the same on every device and for every batch."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def projector_sensitivity(tokens: VisualTokens, directions: Tensor, step: float, rank: int | None = None) -> Tensor:
    """``sensitivity`` of the model's own projector at each token, `[B, N]`; needs the signal ``PreProjector()``."""
    x = tokens.read(PreProjector())
    projector = read_projector(tokens.projector, x.shape[-2], x.shape[-1], rank)
    device = projector.first.device
    found = sensitivity(x.flatten(0, 1).to(device), projector, directions.to(device), step)
    return found.view(x.shape[:2]).to(tokens.ids.device)
