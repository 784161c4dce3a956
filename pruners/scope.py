"""SCOPE: the tokens that cover the picture best, by how salient they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.pruners.primitives.greedy import barred, facility_location
from vtc.pruners.primitives.merging import mean_of_patches
from vtc.pruners.primitives.precision import wide

from .base import Pruner
from .registry import register_pruner
from .signals import EncoderAttention, PreProjector, Signal
from .visual_tokens import VisualTokens

SPACES = ("encoder", "projected")


@register_pruner("scope")
@dataclass(kw_only=True)
class SCOPE(Pruner):
    """SCOPE (Deng et al., NeurIPS 2025, arXiv 2510.24214): saliency-coverage oriented token pruning.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    alpha : float
        Power of the saliency, >= 0: 0 is plain coverage. The paper's default is 1.
    space : {"encoder", "projected"}
        Where tokens are compared: what the projector reads, as in the paper, or what it gives, as in AngelSlim.

    Notes
    -----
    Stage: input. With tokens v `[N, D]` and saliency A `[N]`, the class token's attention in the layer that the
    projector reads, mean over heads (elsewhere the mean attention received)::

        c_u = max_{s chosen} cos(v_u, v_s), at first 0                               (eq. 5 and 6)
        next argmax_i A_i^alpha sum_u max(0, cos(v_u, v_i) - c_u)                    (eq. 8 to 10)

    O(N^2 D + k N^2) time and an N x N matrix, of large pictures half of it; on the CPU about N^2 log k behind the
    cosines, since only the tokens that the last choice covers better are looked at again.

    From the paper's formulas; the authors' repository has no licence for this part. AngelSlim's port (Apache-2.0)
    chooses the same from the same tokens, but takes all pictures of a prompt for one, and the projected tokens. Limits:
    no question; where all is covered, choices go by index.
    """

    alpha: float = 1.0
    space: str = "encoder"

    paper: ClassVar[str] = "arXiv 2510.24214"
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha >= 0:
            raise ValueError(f"scope.alpha={self.alpha!r} is out of range; it must be a number >= 0")
        if self.space not in SPACES:
            raise ValueError(f"scope.space={self.space!r}; allowed are {', '.join(SPACES)}")

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """Attention, and the encoder's tokens unless projected ones are compared."""
        return (EncoderAttention(),) + ((PreProjector(),) if self.space == "encoder" else ())

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """Greedy coverage by saliency, `[B, k]` in the order chosen."""
        attention = wide(tokens.read(self.signals[0])).mean(1).to(tokens.ids.device)
        # what can't be handed on is not chosen, whatever it looked like before
        saliency = (attention.clamp(min=0) ** self.alpha).masked_fill(barred(tokens.features) < 0, float("nan"))
        seen = tokens.features
        if self.space == "encoder":
            seen = mean_of_patches(tokens.read(self.signals[1])).to(tokens.ids.device)
        return facility_location(seen, k, tokens.valid, saliency)
