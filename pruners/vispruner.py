"""VisPruner: half of the tokens by attention, half by removing look-alikes from the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.precision import decides_on_host, exact_dtype, settled
from vtc.pruners.primitives.ranking import top_k

from .base import Pruner
from .registry import register_pruner
from .signals import EncoderAttention, PreProjector, Signal
from .visual_tokens import VisualTokens

MOST = 2**27  # cosines held at a time
NEIGHBOURS = 64  # look-alikes of each token that are known
BLOCK = 512  # tokens at a time whose cosines are computed


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
    `[N, D_enc]`, computed once: O(N^2 D_enc + N^3 / step) time, N x N float64, at most 1 GiB. About ``(N - T) / step``
    rounds, all spans of a batch together. On the CPU O(N^2 (D_enc + 1 / step)) and no N x N matrix: the nearest tokens
    of each are found once (``remove_alike``).

    It cascades: two even places whose cosines all but tie change ranks, another half becomes even, and every later
    round with it. So attention is averaged and cosines are computed in float64 (in float32 every fourth picture of 576
    tokens would keep some 30 of 64 other ones on another machine); but features that differ by as little as 1e-6, as
    they do between cards and always in half precision, still end in another set (docs/stability.md).

    The authors' code fails for lists of odd length; here the even places are one more. It compares in the model's
    dtype. Tokens of several patches (Qwen-VL, Gemma3) are the mean of their patches. All views of an
    anyres picture are one list. Features that are not finite count as zeros,
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
        looks, x = tokens.read(attention), tokens.read(seen)
        width, device = x.shape[1], x.device
        order = top_k(looks.mean(1, dtype=exact_dtype(looks.device)), width, tokens.valid).to(device)
        top = [int(b * self.important) for b in tokens.budgets]
        left = [n - t for n, t in zip(tokens.counts, top, strict=True)]
        goal = [b - t for b, t in zip(tokens.budgets, top, strict=True)]
        first = torch.tensor(top, device=device)[:, None]
        place = torch.arange(width, device=device)
        rest = order.gather(1, (place + first).clamp(max=width - 1))[:, : max(1, *left)]
        if decides_on_host(x):
            for i, (row, n, g) in enumerate(zip(rest, left, goal, strict=True)):
                row[:g] = remove_alike(x[i], row[:n].clone(), g, self.step)
        elif any(n > g for n, g in zip(left, goal, strict=True)):
            cosine = self._cosine(x)
            for even, dropped in self._rounds(left, goal, device):
                rest = self._round(rest, cosine, even, dropped)
        turn = place[:k] - first
        return torch.where(turn < 0, order[:, :k], rest.gather(1, turn.clamp(0, rest.shape[1] - 1)))

    @staticmethod
    def _cosine(seen: Tensor) -> Tensor:
        """Cosines of all tokens with all, `[B, N, N]` float64."""
        rows, width = seen.shape[:2]
        if rows * width**2 > MOST:
            raise NotImplementedError(
                f"vispruner compares all {width} tokens of {rows} pictures with one another, which takes "
                f"{rows * width**2 / 2**27:.1f} GiB here; at most {MOST / 2**27:.0f} GiB are: give it fewer pictures "
                "at a time or smaller ones, or use another method (divprune, visionzip)"
            )
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


def _unit(seen: Tensor) -> Tensor:
    """Mean of the patches of each token `[n, U, D]` at length 1, `[n, D]` float64; 0 for what is not finite."""
    x = seen.mean(1, dtype=torch.float64).nan_to_num_(0, 0, 0)
    return x.div_(x.norm(dim=-1, keepdim=True).clamp_(min=1e-12))


class Lookalikes:
    """The nearest tokens of each among the tokens `among` `[n]`, best first, and their cosines.

    `seen` is `[N, U, D]`, or `[N, D]` where it holds unit vectors already.
    """

    def __init__(self, seen: Tensor, among: Tensor):
        self.seen, self.count = seen, len(among)
        most = min(NEIGHBOURS, len(among) - 1)
        self.column = torch.zeros(len(seen), most, dtype=torch.int64)
        self.cosine = torch.zeros(len(seen), most, dtype=torch.float64)
        for start in range(0, len(among), self._size()):
            some = among[start : start + self._size()]
            found = self.between(some, among)
            found.diagonal(start).fill_(-3.0)
            best = found.topk(most, dim=1)
            self.column[some], self.cosine[some] = among[best.indices], settled(best.values)

    def _size(self) -> int:
        """Tokens at a time."""
        return min(BLOCK, max(64, len(self.seen) // (4 if self.seen.dim() == 2 else 8)))

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        """Cosines of the tokens `a` with the tokens `b`, float64, not settled yet."""
        left = self._units(a)
        found = left.new_empty(len(left), len(b))
        for start in range(0, len(b), self._size()):
            some = slice(start, start + self._size())
            torch.mm(left, self._units(b[some]).T, out=found[:, some])
        return found

    def _units(self, some: Tensor) -> Tensor:
        return self.seen[some] if self.seen.dim() == 2 else _unit(self.seen[some])

    def nearest(self, even: Tensor, odd: Tensor) -> Tensor:
        """Cosine of each token of `even` with the nearest one of `odd`; -2 where there are none."""
        if not len(odd):
            return torch.full((len(even),), -2.0, dtype=torch.float64)
        among = torch.zeros(len(self.seen), dtype=torch.bool)
        among[odd] = True
        there = among[self.column[even]]
        first = there.to(torch.int8).argmax(1, keepdim=True)
        like = self.cosine[even].gather(1, first)[:, 0]
        unknown = (~there.gather(1, first)[:, 0]).nonzero()[:, 0]
        if len(unknown):
            like[unknown] = settled(self.between(even[unknown], odd).amax(1))
        return like


@torch.no_grad()
def remove_alike(seen: Tensor, rest: Tensor, goal: int, step: int) -> Tensor:
    """VisPruner's rounds on the CPU, for one list of tokens: those that are left, `[goal]`, in the list's order.

    As ``VisPruner._round`` chooses, but with the nearest ones of each token known instead of all cosines gathered anew:
    O(N^2 D + N^2 / step) time and O(N) memory. When three quarters of the tokens have gone they are looked up again.

    Parameters
    ----------
    seen : Tensor
        `[N, U, D]` what is compared.
    rest : Tensor
        `[n]` the list.
    goal, step : int
        How many stay, and how many go in a round.
    """
    known = None
    if seen.element_size() > 2:  # half precision is widened block by block instead
        units = torch.empty(len(seen), seen.shape[-1], dtype=torch.float64)
        for start in range(0, len(seen), BLOCK // 4):
            units[start : start + BLOCK // 4] = _unit(seen[start : start + BLOCK // 4])
        seen = units
    while len(rest) > goal:
        go = min(step, len(rest) - goal, (len(rest) + 1) // 2)
        if known is None or 4 * len(rest) <= known.count:
            known = Lookalikes(seen, rest)
        even, odd = rest[0::2], rest[1::2]
        order = known.nearest(even, odd).sort(descending=True, stable=True).indices
        rest = torch.cat([even[order[go:]], odd])
    return rest
