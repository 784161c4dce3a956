"""GlobalCom2: the thumbnail of a picture says how much each crop keeps, and what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vtc.pruners.primitives.best_per_part import (
    at_least_one,
    best,
    budgets_of,
    by_id,
    columns_of,
    part_sizes,
    part_sums,
    parts_of,
    per_token,
    rank_in_part,
)
from vtc.pruners.primitives.precision import exact, settled, wide

from .base import Pruner
from .layout import Layout
from .registry import register_pruner
from .signals import EncoderAttention, Signal
from .visual_tokens import VisualTokens

LOOKS = EncoderAttention(layer=-1, queries="cls_or_none", logits=True)
CLASS_TOKEN = EncoderAttention(layer=-1, queries="cls", logits=True)
SCORES = ("auto", "attention", "cosine")


@register_pruner("globalcom2")
@dataclass(kw_only=True)
class GlobalCom2(Pruner):
    """GlobalCom2 (Liu et al., AAAI 2026, arXiv 2501.05179): global compression commander, for pictures cut into crops.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly (thumbnail and crops together; where each is a span, in sum over the picture).
        The paper's ratios are 50, 25 and 10%.
    tau : float
        Temperature of the budgets. The authors' is 10.
    alpha : float
        Weight of the thumbnail's view in a crop's scores. The authors' is 0.5.
    score : str
        ``"attention"``: logits of the class token's attention in the tower's last layer, mean over heads;
        ``"cosine"``: ``-cos(x_i, mean_j x_j)`` in each view, for towers without a class token; ``"auto"`` takes the
        logits where there is one.
    official : bool
        As the authors' code where it rounds down and leaves uncropped pictures alone: keeps another number than asked.

    Notes
    -----
    Stage: input. ``R = keep / n``. The thumbnail keeps its ``R N`` highest scores ``a``. With ``S_c`` the sum of ``a``
    over the thumbnail's region of crop c and ``sigma = softmax((S - max S) / tau)``, crop c of ``n_c`` tokens keeps
    ``n_c min(1, R (1 + sigma_c - mean sigma))`` with the highest ``(1 - alpha) a^c / |a^c| + alpha g^c / |g^c|``, where
    ``a^c`` are the crop's own scores and ``g^c`` those of the thumbnail, resized bilinearly to the mosaic. The crops'
    shares are scaled to what is left of the budget; fractions go by the largest remainder. O(n log n).

    The sums are of logits, as in the authors' code: of probabilities the budgets would be flat (within 2.5%). A region
    is where the crop's unpadded part lies; the authors divide the thumbnail evenly, padding or not (``official=True``).
    They write the j-th token that padding leaves of a crop to the crop's j-th cell, so that kept tokens of padded
    pictures reach the language model in another order, and keep every row's newline token: neither is reproduced.

    Spans that are not cut (LLaVA-1.5, Qwen-VL) keep their top scores, frames of a video equal shares. InternVL,
    Idefics3 and SmolVLM feed thumbnail and crops as spans of their own: those of one picture share the sum of their
    budgets (``joins_crops``), where the prompt (Idefics3, SmolVLM) or the pixels (InternVL) tell which they are and how
    they lie; where they can't, each crop keeps its own top scores.
    """

    tau: float = 10.0
    alpha: float = 0.5
    score: str = "auto"
    official: bool = False

    paper: ClassVar[str] = "arXiv 2501.05179"
    ragged: ClassVar[bool] = True
    joins_crops: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau > 0:
            raise ValueError(f"globalcom2.tau={self.tau} is out of range: it must be above 0")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"globalcom2.alpha={self.alpha} is out of range: it must be in [0, 1]")
        if self.score not in SCORES:
            raise ValueError(f"globalcom2.score={self.score!r} is unknown: allowed are {', '.join(SCORES)}")
        if self.official:
            self.adaptive_count = True  # type: ignore[misc]

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """The class token's logits; they must be there for ``score="attention"``."""
        return {"auto": (LOOKS,), "attention": (CLASS_TOKEN,), "cosine": ()}[self.score]

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """Columns in ascending order."""
        part, count = parts_of(tokens)
        tiled = [cropped(layout) for layout in tokens.layouts]
        # resized scores repeat at the borders: equal ones have to stay equal, so that the lowest index decides
        own = exact(self._own(tokens, part, count).nan_to_num(0, 0, 0).masked_fill(~tokens.valid, 0))
        seen = _seen(tokens, own, tiled)
        norm = [
            per_token(part_sums(x**2, part, count).sqrt().clamp(min=1e-12), part).clamp(min=1e-12) for x in (own, seen)
        ]
        both = settled((1 - self.alpha) * own / norm[0] + self.alpha * seen / norm[1])
        rank = rank_in_part(torch.where(part == 0, own, both), part, count)

        sizes, budget = part_sizes(part, count), budgets_of(tokens)
        ratio = budget / sizes.sum(1, keepdim=True)
        if self.official and isinstance(self.keep, float):
            ratio = torch.full_like(ratio, self.keep)  # not the nearest that whole tokens allow
        crop = torch.tensor(tiled, device=part.device)[:, None] & (torch.arange(count, device=part.device) > 0)
        crop = crop & (sizes > 0)
        share = torch.where(crop, self._shares(tokens, own, crop, ratio), ratio)
        if self.official:
            quota = torch.where(torch.tensor(tiled, device=part.device)[:, None], (sizes * share).long(), sizes)
            chosen = at_least_one((rank < per_token(quota, part)) & tokens.valid, both, tokens.valid)
            return columns_of(chosen, part.shape[1], exact=False)
        quota = sizes * share
        first = torch.where(crop, 0, quota).sum(1, keepdim=True)
        crops = torch.where(crop, quota, 0).sum(1, keepdim=True)
        quota = torch.where(crop, quota * (budget - first) / crops.clamp(min=1e-12), quota)
        return columns_of(best(per_token(quota, part) - rank, budget, tokens.valid), k)

    def _own(self, tokens: VisualTokens, part: Tensor, count: int) -> Tensor:
        """Score of each token in its own view, `[B, N]`."""
        rows = [wide(tokens.read(signal)) for signal in self.signals]
        if rows and (self.score == "attention" or rows[0].shape[1] > 1):
            return rows[0].mean(1)
        unlike = torch.stack([_unlike_mean(x, p, count) for x, p in zip(tokens.features, part, strict=True)])
        # one head of nothing but zeros is how a tower without a class token answers
        return torch.where((rows[0] == 0).all(2), unlike, rows[0][:, 0]) if rows else unlike

    def _shares(self, tokens: VisualTokens, own: Tensor, crop: Tensor, ratio: Tensor) -> Tensor:
        """What each crop keeps, `[B, parts]`."""
        aim = by_id(tokens, [regions(layout, self.official) for layout in tokens.layouts])
        looked = part_sums(own, torch.where(aim > 0, aim, crop.shape[1]), crop.shape[1])
        weight = (looked.masked_fill(~crop, float("-inf")) / self.tau).softmax(1).nan_to_num(0)
        mean = weight.sum(1, keepdim=True) / crop.sum(1, keepdim=True).clamp(min=1)
        return (ratio * (1 + weight - mean)).clamp(max=1)


def cropped(layout: Layout) -> bool:
    """Whether a span is a thumbnail with a mosaic of crops behind it."""
    return len(layout.grids) == 2 and layout.grids[0].kind == "base"


def regions(layout: Layout, even: bool) -> np.ndarray:
    """Which crop (as a part, from 1) each token of the thumbnail stands for, `[n]`; 0 for the others.

    ``even`` divides the thumbnail evenly, the rest to the last crops; else by where the crops' unpadded parts lie.
    """
    found = np.zeros(layout.tokens, dtype=np.int64)
    if not cropped(layout):
        return found
    base, mosaic = layout.grids
    down, across = (len(cuts) + 1 for cuts in mosaic.cuts)
    row, col = np.divmod(np.arange(base.rows * base.cols), base.cols)
    if even:
        row = np.minimum(row // max(base.rows // down, 1), down - 1)
        col = np.minimum(col // max(base.cols // across, 1), across - 1)
    else:
        row = np.searchsorted(mosaic.cuts[0], (row + 0.5) * mosaic.rows / base.rows, "right")
        col = np.searchsorted(mosaic.cuts[1], (col + 0.5) * mosaic.cols / base.cols, "right")
    found[: base.rows * base.cols] = 1 + row * across + col
    return found


def _seen(tokens: VisualTokens, own: Tensor, tiled: list[bool]) -> Tensor:
    """The thumbnail's scores at the places of the crops' tokens, `[B, N]`; 0 elsewhere."""
    found = torch.zeros_like(own)
    for i, layout in enumerate(tokens.layouts):
        if tiled[i]:
            base, mosaic = layout.grids
            by_id_of = own.new_zeros(layout.tokens)
            by_id_of[tokens.ids[i, : tokens.counts[i]]] = own[i, : tokens.counts[i]]
            view = by_id_of[: base.rows * base.cols].view(1, 1, base.rows, base.cols)
            big = interpolate(view, (mosaic.rows, mosaic.cols), mode="bilinear", align_corners=False)[0, 0]
            place = torch.from_numpy(layout.array).to(own.device)[tokens.ids[i, : tokens.counts[i]]]
            inside = (place[:, 0] == 1) & (place[:, 2] >= 0)
            values = big[place[:, 1].clamp(max=mosaic.rows - 1), place[:, 2].clamp(0, mosaic.cols - 1)]
            found[i, : tokens.counts[i]] = torch.where(inside, values, 0)
    return found


def _unlike_mean(x: Tensor, part: Tensor, count: int) -> Tensor:
    """``-cos(x_i, mean of its part)``, `[N]` float32."""
    x = wide(x)
    inside = (part == torch.arange(count, device=part.device)[:, None]).to(x)
    mean = (inside @ x) / inside.sum(1, keepdim=True).clamp(min=1)
    mean = torch.nn.functional.pad(mean, (0, 0, 0, 1))
    dot = (x @ mean.T).gather(1, part[:, None])[:, 0]
    size = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(mean, dim=1)[part]
    return -dot / size.clamp(min=1e-12)
