"""FSR: what stands out for the question, then what is least like it, into which the nearest of the rest is merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from vtc.pruners.primitives.best_per_part import best, budgets_of, columns_of
from vtc.pruners.primitives.clip_text import clip_text, read_clip
from vtc.pruners.primitives.greedy import farthest_point, finite_range
from vtc.pruners.primitives.merging import combine, cosine, membership, nearest, take
from vtc.pruners.primitives.precision import exact, wide, wide_dtype

from .base import Merged, Pruner
from .registry import register_pruner
from .signals import EncoderAttention, EncoderFeatures, Signal
from .visual_tokens import VisualTokens

FIRST = 1e12  # weight that puts the focus before everything else


@register_pruner("fsr")
@dataclass(kw_only=True)
class FSR(Pruner):
    """Focus-Scan-Refine (Tong et al., 2026, arXiv 2602.05809): local evidence, complementary context, and its details.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    text_encoder : str, optional
        The CLIP that the model's vision tower was taken from, for relevance to the question, as in ``cdpruner``.
        Without it there is none, which is what the paper does for Qwen2.5-VL; its LLaVA figures are with it.
    alpha, beta : float
        Exponents of relevance and saliency. The paper's are 3 and 1.
    rho : float
        Share of all priority that the focus takes, in [0, 1]. The paper's is 0.9.
    kappa : float
        Dropped tokens that are merged, as a multiple of the scanned ones. The paper's is 1.
    negate : bool
        Take LOW similarity of patch and text for relevant, see ``cdpruner``; the paper's equation does not.

    Notes
    -----
    Stage: input; merges. With s `[N]` the class token's attention, mean over heads, in the layer that the projector
    reads (elsewhere the mean attention received), r_i the cosine of CLIP's embeddings of patch and question, and x
    `[N, D]` the projected features, hats scaling to [0, 1] within the span::

        phi_i = r^_i^alpha s^_i^beta                                                            (eq. 1 to 3)
        focus     the fewest tokens of largest phi whose phi sums to rho of all, at most K      (eq. 4)
        scan      until there are K: argmax_i min_{j chosen} (1 - cos(x_i, x_j))                (eq. 5)
        refine    of the others the kappa |scan| with the largest cosine to a scanned token join the one that is
                  nearest: sum phi x / sum phi over it and its own; the focus stays as it is    (eq. 8 and 9)

    O(K N D) and an N x K matrix; one pass of CLIP over the question. No code was published, and the equations were
    read in two transcriptions of the paper that agree. OURS is that a focus larger than K is cut to its best K (the
    paper leaves open what happens then, and without relevance it is so at most budgets), that x is projected in
    both later stages, that all views of an anyres picture are one span, and that a scanned token of no priority
    which only such tokens join stays as it is. Ties go to the lowest index; tokens whose features or scores are not
    finite have no priority and come last.
    """

    text_encoder: str | None = None
    alpha: float = 3.0
    beta: float = 1.0
    rho: float = 0.9
    kappa: float = 1.0
    negate: bool = False

    paper: ClassVar[str] = "arXiv 2602.05809"
    merges: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rho <= 1:
            raise ValueError(f"fsr.rho={self.rho} is out of range: it must be in [0, 1]")
        for name in ("alpha", "beta", "kappa"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"fsr.{name}={getattr(self, name)} is out of range; it must be 0 or more")

    @property
    def uses_text(self) -> bool:  # type: ignore[override]
        """Only for relevance."""
        return self.text_encoder is not None

    @property
    def uses_question(self) -> bool:  # type: ignore[override]
        """Only for relevance."""
        return self.text_encoder is not None

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """Attention, and the patches that CLIP embeds."""
        return (EncoderAttention(),) if self.text_encoder is None else (EncoderAttention(), EncoderFeatures())

    def check_files(self) -> None:
        """The CLIP, which is loaded here and used later."""
        if self.text_encoder is not None:
            read_clip(self.text_encoder)

    def priority(self, tokens: VisualTokens) -> Tensor:
        """phi, `[B, N]` float64."""
        device = tokens.ids.device
        norm = vector_norm(tokens.features, dim=-1, dtype=wide_dtype(tokens.features))
        phi = self._scaled(wide(tokens.read(self.signals[0]).to(device)).mean(1), tokens) ** self.beta
        if self.text_encoder is not None:
            x = tokens.read(self.signals[1])
            encoder = clip_text(self.text_encoder, x.device)
            text = encoder.text(tokens.questions())[tokens.sample.to(x.device)]
            likeness = torch.einsum("bnud,bd->bnu", encoder.patches(x), text).mean(-1).to(device)
            phi = phi * self._scaled(-likeness if self.negate else likeness, tokens) ** self.alpha
        return phi.masked_fill(~(tokens.valid & norm.isfinite() & phi.isfinite()), 0)

    @staticmethod
    def _scaled(score: Tensor, tokens: VisualTokens) -> Tensor:
        return exact(finite_range(score, tokens.valid))

    def select(self, tokens: VisualTokens, k: int) -> Merged:
        """Focus and scan in index order, what was scanned with what joined it."""
        valid, budget, phi = tokens.valid, budgets_of(tokens), self.priority(tokens)
        order = phi.masked_fill(~valid, -1).sort(dim=1, descending=True, stable=True).indices
        mass = phi.gather(1, order).cumsum(1)
        size = torch.minimum((mass < self.rho * mass[:, -1:]).sum(1, keepdim=True) + 1, budget)
        place = torch.arange(phi.shape[1], device=phi.device)
        focus = torch.zeros_like(valid).scatter(1, order, place < size)

        weight = torch.where(focus, FIRST, 1.0).to(wide_dtype(tokens.features))
        found = farthest_point(tokens.features, k, valid, weight, phi)
        turn = torch.zeros_like(phi).scatter(1, found, (k - place[:k]).to(phi.dtype).expand(found.shape))
        # of equal tokens the focus has all, wherever they came
        kept = best(turn.masked_fill(focus, k + 1), budget, valid)
        index = columns_of(kept, k)
        return Merged(index, self._refined(tokens, phi, kept, index, (kept & ~focus).gather(1, index)))

    def _refined(self, tokens: VisualTokens, phi: Tensor, kept: Tensor, index: Tensor, scanned: Tensor) -> Tensor:
        """Features of the tokens at `index [B, k]`; those that are `scanned [B, k]` with what joins them."""
        x, weight = tokens.features, phi.float()
        own = take(x, index)
        like, owner = nearest(cosine(x, own), scanned)
        count = (self.kappa * scanned.sum(1, keepdim=True) + 0.5).long()
        joined = best(like, count, tokens.valid & ~kept)
        mine = weight.gather(1, index)
        shares = membership(owner, index.shape[1], joined, weight)
        total = shares.sum(2) + mine
        shares.scatter_add_(2, index[..., None], mine[..., None])
        made = combine(shares, x).div_(total.clamp(min=torch.finfo(total.dtype).tiny)[..., None])
        return torch.where((scanned & (total > 0))[..., None], made.to(x.dtype), own)
