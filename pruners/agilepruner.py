"""AgilePruner: by falling attention, without look-alikes; what is alike depends on how varied the picture is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.greedy.steps import Similarities
from vtc.pruners.primitives.merging import mean_of_patches
from vtc.pruners.primitives.precision import exact_dtype, wide
from vtc.pruners.primitives.ranking import top_k

from .base import Pruner
from .registry import register_pruner
from .signals import EncoderAttention, PreProjector, Signal
from .visual_tokens import VisualTokens

CHUNK = 256  # tokens widened together


@register_pruner("agilepruner")
@dataclass(kw_only=True)
class AgilePruner(Pruner):
    """AgilePruner (Baek et al., ICLR 2026, arXiv 2603.01236): attention first, a threshold for look-alikes that adapts.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    step : float
        How much the threshold grows from one rank to the next in a picture of average variety. The authors' is 0.01.
    tau_max : float
        The largest threshold, a cosine distance. The authors name such a bound; 0.25 is what a public port to vLLM
        takes, whether it is theirs could not be read.
    erank_avg : float
        Effective rank of the average picture. The authors take the mean over LLaVA's training set; 95 is the port's,
        which names their appendix as its source. Not calibrated for other encoders.

    Notes
    -----
    Stage: input. With x `[N, D_enc]` what the projector reads, s its singular values and a `[N]` the class token's
    attention, mean over heads, in the layer that the projector reads (elsewhere the mean attention received)::

        q = s / sum s,   erank = exp(-sum q log q)
        tau_i = min(tau_max, order_i step erank / erank_avg),   order_i the rank of token i by falling a, from 1 on

    By falling a: take the next token i that is left, and remove all j with ``1 - cos(x_i, x_j) < tau_i``, until there
    are enough. So complex pictures lose more look-alikes, and simple ones keep what is looked at most; the attention's
    entropy, which the paper studies as well, is not in the rule. O(k N D_enc) for the choice, k matrix-vector products
    of all spans together, and O(min(N, D_enc)^3) in float64 for the singular values, for which CUDA waits once.

    From the formulas of the authors' project page: their repository (Apache-2.0) announces code and has none. What it
    leaves open is OURS: which features x are, that removed tokens fill up by falling attention where all are taken or
    removed before there are enough, and the order of ties (the lowest index). All views of an anyres picture and all
    frames of a video are one list. Tokens of several patches are the mean of their patches. Features that are not
    finite count as zeros and resemble nothing; attention that is not finite comes last.
    """

    step: float = 0.01
    tau_max: float = 0.25
    erank_avg: float = 95.0

    paper: ClassVar[str] = "arXiv 2603.01236"
    signals: ClassVar[tuple[Signal, ...]] = (EncoderAttention(), PreProjector())
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.step >= 0:
            raise ValueError(f"agilepruner.step={self.step} is out of range; it must be 0 or more")
        if not 0 <= self.tau_max <= 2:
            raise ValueError(f"agilepruner.tau_max={self.tau_max} is out of range: cosine distances are in [0, 2]")
        if not self.erank_avg > 0:
            raise ValueError(f"agilepruner.erank_avg={self.erank_avg} is out of range; it must be above 0")

    @torch.no_grad()
    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """In the order taken, `[B, k]`."""
        attention, seen = self.signals
        device, n = tokens.ids.device, tokens.ids.shape[1]
        looks = wide(tokens.read(attention).to(device)).mean(1)
        order = top_k(looks, n, tokens.valid)
        x = mean_of_patches(tokens.read(seen)).to(device)
        rate = self.step * effective_rank(x) / self.erank_avg
        rank = torch.zeros_like(order).scatter(1, order, torch.arange(n, device=device).expand_as(order))
        # by rank; n later once removed, 2 n later without attention or for padding
        turn = (rank + 2 * n * ~(tokens.valid & looks.isfinite())).to(rate.dtype)
        similar, chosen = Similarities(x, tokens.valid, k), []
        for _ in range(k):
            best = turn.argmin(1, keepdim=True)
            chosen.append(best)
            tau = ((rank.gather(1, best) + 1) * rate[:, None]).clamp(max=self.tau_max)
            alike = (1 - similar.column(best[:, 0]) < tau) & (turn < n)
            turn = (turn + n * alike).scatter(1, best, float("inf"))
        return torch.cat(chosen, 1)


def effective_rank(x: Tensor) -> Tensor:
    """``exp`` of the entropy of the normalised singular values of `x [B, N, D]`, `[B]` float64, at least 1."""
    b, n, d = x.shape
    dtype = exact_dtype(x.device)
    x = x.mT if n <= d else x  # the Gram matrix of the shorter side
    gram = x.new_zeros(b, min(n, d), min(n, d), dtype=dtype)
    for part in x.split(CHUNK, 1):
        some = part.to(dtype).nan_to_num(0, 0, 0)
        gram.baddbmm_(some.mT, some)
    s = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return torch.special.entr(s / s.sum(1, keepdim=True).clamp(min=1e-30)).sum(1).exp()
