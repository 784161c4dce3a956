"""A projector's weights as ``sensitivity`` reads them: a norm, a linear layer, an activation, another linear layer.

Of the second matrix only lengths are asked, and those its triangular factor (QR) gives as well: half of the products.
It is made once for a weight and kept. Weights stay as they were loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.weak import WeakTensorKeyDictionary

from vtc.pruners.visual_tokens import VisualTokens

from .precision import wide_dtype

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


def project_anew(tokens: VisualTokens, x: Tensor, method: str) -> Tensor:
    """What `method` merged before the projector, `[B, k, U, D_enc]`, projected: `[B, k, D]`.

    Raises
    ------
    NotImplementedError
        Where the projector takes no single tokens, with the method's ``merge`` that does without it.
    """
    try:
        return tokens.project(x)
    except NotImplementedError as error:
        raise NotImplementedError(f"{method}: {error}: {method}(merge='projected')") from None
