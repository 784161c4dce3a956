"""VisPruner: half of the tokens by attention, half by removing look-alikes from the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.precision import exact_dtype, settled
from vtc.pruners.primitives.ranking import top_k

from .base import Pruner
from .registry import register_pruner
from .signals import EncoderAttention, PreProjector, Signal
from .visual_tokens import VisualTokens


@register_pruner("vispruner")
@dataclass(kw_only=True)
class VisPruner(Pruner):
    """VisPruner (Zhang et al., ICCV 2025, arXiv 2412.01818): important tokens and diverse ones.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    important : float
        The share that is chosen by attention. The authors' default is 0.5.
    step : int
        Look-alikes removed in a round. The authors' is 8.

    Notes
    -----
    Stage: input. Of the budget T, ``int(T important)`` tokens are those with the largest ``mean_h A[h, i]``, A `[H, N]`
    the class token's attention in the layer whose output the projector reads (elsewhere the mean attention received).
    The others are a list by falling attention. While more than the rest of T are left, the list is split into its even
    and odd places, and the ``min(step, surplus)`` even ones with the largest cosine to any odd one go; the list goes on
    with the even ones left, by falling cosine, followed by the odd ones. Cosines are of what the projector reads,
    `[N, D_enc]`, computed once: O(N^2 D_enc + N^3 / step) time, N x N float64. About ``(N - T) / step`` rounds, all
    spans of a batch together.

    It cascades: two even places whose cosines all but tie change ranks, another half becomes even, and every later
    round with it. So attention is averaged and cosines are computed in float64 (in float32 every fourth picture of 576
    tokens would keep some 30 of 64 other ones on another machine); but features that differ by as little as 1e-6, as
    they do between cards and always in half precision, still end in another set (docs/stability.md).

    The authors' code fails for lists of odd length; here the even places are one more. It compares in the model's
    dtype. Tokens of several patches (Qwen-VL, Gemma3) are the mean of their patches. All views of an
    anyres picture are one list, so N x N is then 66 MB for 2,880 tokens. Features that are not finite count as zeros,
    attention that is not finite as the lowest.
    """

    important: float = 0.5
    step: int = 8

    paper: ClassVar[str] = "arXiv 2412.01818"
    signals: ClassVar[tuple[Signal, ...]] = (EncoderAttention(), PreProjector())
    ragged: ClassVar[bool] = True
    cascades: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.important <= 1:
            raise ValueError(f"vispruner.important={self.important} is out of range: it must be in [0, 1]")
        if self.step < 1:
            raise ValueError(f"vispruner.step={self.step!r} is out of range; it must be an int >= 1")

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """The important ones by falling attention, then the diverse ones."""
        attention, seen = self.signals
        cosine = self._cosine(tokens.read(seen))
        width, device = cosine.shape[1], cosine.device
        looks = tokens.read(attention)
        order = top_k(looks.mean(1, dtype=exact_dtype(looks.device)), width, tokens.valid)
        top = [int(b * self.important) for b in tokens.budgets]
        left = [n - t for n, t in zip(tokens.counts, top, strict=True)]
        goal = [b - t for b, t in zip(tokens.budgets, top, strict=True)]
        first = torch.tensor(top, device=device)[:, None]
        place = torch.arange(width, device=device)
        rest = order.gather(1, (place + first).clamp(max=width - 1))[:, : max(1, *left)]
        for even, dropped in self._rounds(left, goal, device):
            rest = self._round(rest, cosine, even, dropped)
        turn = place[:k] - first
        return torch.where(turn < 0, order[:, :k], rest.gather(1, turn.clamp(0, rest.shape[1] - 1)))

    @staticmethod
    def _cosine(seen: Tensor) -> Tensor:
        """Cosines of all tokens with all, `[B, N, N]` float64."""
        x = seen.mean(2, dtype=exact_dtype(seen.device)).nan_to_num_(0, 0, 0)
        x /= x.norm(dim=-1, keepdim=True).clamp_(min=1e-12)
        return settled(x @ x.transpose(1, 2))

    def _rounds(self, left: list[int], goal: list[int], device: torch.device) -> Tensor:
        """`[rounds, 2, 2, B, 1]`: before each round the even and odd places of each row, and how many even ones go."""
        plan = []
        while any(n > g for n, g in zip(left, goal, strict=True)):
            go = [min(self.step, n - g, (n + 1) // 2) for n, g in zip(left, goal, strict=True)]
            plan.append([[[(n + 1) // 2 for n in left], [n // 2 for n in left]], [go, go]])
            left = [n - d for n, d in zip(left, go, strict=True)]
        return torch.tensor(plan, device=device).view(len(plan), 2, 2, len(left), 1)

    @staticmethod
    def _round(rest: Tensor, cosine: Tensor, split: Tensor, dropped: Tensor) -> Tensor:
        """The list after one round, `[B, L]`; what stands behind a row's end is arbitrary."""
        (n_even, n_odd), go = split, dropped[0]
        even, odd = rest[:, 0::2], rest[:, 1::2]
        places = torch.arange(rest.shape[1], device=rest.device)
        rows = torch.arange(rest.shape[0], device=rest.device)[:, None, None]
        like = cosine[rows, even[:, :, None], odd[:, None]].masked_fill_((places[: odd.shape[1]] >= n_odd)[:, None], -2)
        like = like.amax(-1) if odd.shape[1] else torch.full_like(even, -2, dtype=cosine.dtype)
        like = like.masked_fill(places[: even.shape[1]] >= n_even, -3)
        even = even.gather(1, like.sort(dim=1, descending=True, stable=True).indices)
        both = torch.cat([even, odd], 1)
        source = torch.where(places < n_even - go, places + go, places - (n_even - go) + even.shape[1])
        done = both.gather(1, source.clamp(max=both.shape[1] - 1))
        return torch.where(go > 0, done, rest)  # finished rows stay as they are
