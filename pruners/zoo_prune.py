"""ZOO-Prune: diversity weighted by how sensitive the projector is at a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.pruners.primitives.crops_and_frames import choose_in_frames
from vtc.pruners.primitives.greedy import farthest_point, finite_range
from vtc.pruners.primitives.projector_sensitivity import drawn_directions, projector_sensitivity

from .base import Pruner
from .registry import register_pruner
from .signals import PreProjector, Signal
from .visual_tokens import VisualTokens


def _farthest(x: Tensor, score: Tensor, valid: Tensor, k: int) -> Tensor:
    """Max-min diversity weighted by scores scaled to [0, 1]; equal scores weigh 1."""
    weight = finite_range(score, valid, 1e-8)
    equal = ~(weight > 0).any(-1, keepdim=True) & weight.isfinite()
    return farthest_point(x, k, valid, weight.masked_fill(equal, 1))


@register_pruner("zoo_prune")
@dataclass(kw_only=True)
class ZooPrune(Pruner):
    """ZOO-Prune (Kim et al., CVPR 2026, arXiv 2509.24837): zeroth-order sensitivity of the projector, and diversity.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    directions : int
        m random directions. The paper's default is 64; it finds 16 to 160 alike.
    step : float
        h of the central difference. The paper's default is 0.01.
    rank : int, optional
        Take the projector's second matrix at this rank, by an SVD of the loaded one that is made once: the
        sensitivity's cost falls by that much. The authors use 128 on LLaVA-NeXT. Default: the whole matrix.
    per_frame : bool
        Choose inside each picture of a span (whole image, crops; frames of a video), an equal share each, as the
        authors' code does. False chooses in the whole span at once, as the paper describes.
    seed : int
        Seed of the directions.

    Notes
    -----
    Stage: input. With x_i `[D_enc]` what the projector M reads (all patches of the token side by side where it merges
    them), ``z_i = M(x_i)`` and m unit directions u_j shared by all tokens::

        S_i = mean_j || M(x_i + h u_j) - M(x_i - h u_j) || / (2 h)
        s_i = (S_i - min S) / (max S - min S + 1e-8)        (1 where all are equal)
        first argmax s_i, then argmax_i s_i min_{j chosen} (1 - cos(z_i, z_j))

    S is computed in float32 (the difference of activations in float64) whatever the model's dtype: in half precision
    h u is below the rounding of x. It is exact algebra for the projectors of all families (see ``sensitivity``): the
    first layer costs a row per token and one per direction, the second half a row per pair, O(m N H D / 2) instead of
    twice both layers; low rank is computed from the loaded weights. Selection is O(k N D).

    WARNING: the selection itself is dear, and may cost more than it saves; `vtc plan --pruner zoo_prune` says what it
    is on a model and a device. The sensitivity alone is of the order of a pruned prefill (LLaVA-1.5-7B, 576 tokens, m =
    64: about 0.3e12 multiplications, where the 103 tokens left of a picture and a question take 0.7e12), and grows with
    N m. Where time matters, use `rank` (128 takes a sixteenth of it) or fewer `directions`. The triangle of the second
    matrix is made once for a model and kept, in float32 (64 MiB for LLaVA-1.5-7B).

    The authors draw fresh directions for every image; a seed is used here. Their LLaVA-NeXT code makes its low-rank
    projector before the weights are loaded (a random network), keeps newline tokens by positions that are off by the
    whole image's 576, and rounds each frame's share down; here newlines are no candidates, and the remainder of the
    shares goes to the first frames. No code for Qwen was published: a direction moves a merge unit's patches together.
    Limits: Idefics3's and SmolVLM's projector is linear, so its sensitivity is constant and only diversity is left;
    quantised and offloaded projectors are refused.
    """

    directions: int = 64
    step: float = 0.01
    rank: int | None = None
    per_frame: bool = True
    seed: int = 0

    paper: ClassVar[str] = "arXiv 2509.24837"
    signals: ClassVar[tuple[Signal, ...]] = (PreProjector(),)
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("directions", self.directions), ("rank", 1 if self.rank is None else self.rank)):
            if value < 1:
                raise ValueError(f"zoo_prune.{name}={value!r} is out of range; it must be an int >= 1")
        if not self.step > 0:
            raise ValueError(f"zoo_prune.step={self.step!r} is out of range; it must be a number > 0")

    def sensitivity(self, tokens: VisualTokens) -> Tensor:
        """S of each token, `[B, N]` float32."""
        x = tokens.read(self.signals[0])
        return projector_sensitivity(tokens, self.draw(x.shape[-2] * x.shape[-1]), self.step, self.rank)

    def draw(self, width: int) -> Tensor:
        """The directions `[m, width]`, of any length."""
        return drawn_directions(self.directions, width, self.seed)

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """Sensitivity-weighted max-min diversity, `[B, k]`, frame after frame."""
        score = self.sensitivity(tokens)
        if self.per_frame:
            return choose_in_frames(tokens, k, score, _farthest)
        return _farthest(tokens.features, score, tokens.valid, k)
