"""p-MoD: in each deeper layer fewer visual tokens are processed; those that go round a layer are back in the next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from vtc.pruners.primitives.ranking import top_k
from vtc.pruners.trained.compressor import TrainedCompressor

from .base import Lent, Loan, Stop
from .model_facts import ModelFacts
from .registry import register_pruner
from .visual_tokens import VisualTokens

SHIFT, MOST, LEAST = 0.5, 0.85, 0.15  # of the schedule
OFFICIAL = 31  # L - 1 of the authors' 32 layers, a literal in their code
SCHEDULES = ("shiftedcos", "shiftedlinear")


class PModRouters(nn.Module):
    """A gate for each visual token in each layer: ``0.2 tanh(w h + b) + 1``.

    Parameters
    ----------
    width : int
        Of the hidden states.
    layers : int
        Of the decoder. Those that stay dense have a router too, which nothing asks.

    Notes
    -----
    Weights begin at zero, so that all gates are 1 and the lowest index decides who goes through a layer.
    """

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.routers = nn.ModuleList(nn.Linear(width, 1) for _ in range(layers))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor, layer: int) -> Tensor:
        """Gates `[B, N]` of the states `hidden` `[B, N, D]` that enter decoder layer `layer`."""
        logits: Tensor = self.routers[layer](hidden)[..., 0]
        return 0.2 * logits.tanh() + 1


def schedule(depth: int, kind: str, last: int, shift: float = SHIFT, least: float = LEAST) -> list[float]:
    """Which part of the visual tokens each of `depth` layers processes; 1.0 where it is dense.

    ``r_l = cos(pi l / last) / 2 + shift``, or ``0.5 - l / last + shift``; 1.0 above 0.85, and `least` at least.
    """
    if kind == "shiftedcos":
        ratios = [0.5 * math.cos(math.pi * layer / last) + shift for layer in range(depth)]
    else:
        ratios = [(0.5 - layer / last) + shift for layer in range(depth)]
    return [1.0 if r > MOST else max(r, least) for r in ratios]


@register_pruner("pmod")
@dataclass(kw_only=True)
class PMoD(TrainedCompressor):
    """p-MoD (Zhang et al., ICCV 2025, arXiv 2412.04449): mixture of depths for visual tokens, progressively fewer.

    Parameters
    ----------
    keep : float, optional
        Visual tokens that a layer processes, as a fraction on average over the layers, about 0.54 by default: the
        paper's schedule. Another value moves the schedule up or down as a whole, to the largest mean that is not above
        it; routers are not trained for that, and it is OURS. A count means nothing here.
    weights : str, optional
        See ``TrainedCompressor``; ``"untrained"`` are routers of zeros.
    target : {"shiftedcos", "shiftedlinear"}
        How ratios fall with depth.
    official : bool
        31 in the place of L - 1, as in the authors' code: right for 32 layers, and with 8 layers none is a MoD layer.

    Notes
    -----
    Stage: decoder, a ``Loan`` at each MoD layer. Nothing is dropped for good: a token that goes round a layer may run
    the next. Layer l of L has the ratio ``r_l = cos(pi l / (L - 1)) / 2 + 0.5``; where it is at most 0.85, ``max(r_l,
    0.15)`` of a sample's n visual tokens (all its pictures, newlines as well), rounded down, go through the layer, the
    others round it. With h the states that enter, `[n, D]`::

        g = 0.2 tanh(W_l h + b_l) + 1               a gate in (0.8, 1.2), in float32
        text: z + m;  chosen: z + g m;  not chosen: g h     z = h + Attn(h) among what is there, m = MLP(z)

    Chosen are the tokens with the largest g, ties by the lowest index. O(n D) a layer. Keys and values of a layer are
    those of its chosen tokens and the text. Means over the layers are about 0.537 of the tokens at any depth.

    Untrained routers are zeros: all gates are 1, and each layer processes the first tokens of the picture, which is no
    method to use. Training starts there, together with the projector and the language model (``vtc train pmod``).

    Where we deviate: the authors set the logits of text to -inf BEFORE tanh, so that a visual token of a saturated gate
    can lose to a text token, of which then nothing more is told; here text is no candidate. ``torch.topk`` leaves open
    who wins a tie. Their code runs single samples, or batches whose rows end up with different lengths.
    """

    target: str = SCHEDULES[0]
    official: bool = False

    stage: ClassVar[str] = "decoder"
    paper: ClassVar[str] = "arXiv 2412.04449"
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._depth = 0
        if self.keep is not None and not isinstance(self.keep, float):
            raise ValueError(f"pmod.keep={self.keep} must be a fraction, the mean over the layers of what they process")
        if self.target not in SCHEDULES:
            raise ValueError(f"pmod.target={self.target!r} must be one of {', '.join(SCHEDULES)}")

    def ratios(self, depth: int) -> list[float]:
        """What each of `depth` layers processes; 1.0 where it is dense."""
        last = OFFICIAL if self.official else max(1, depth - 1)
        if self.keep is None:
            return schedule(depth, self.target, last)
        if self.keep == 1.0:
            return [1.0] * depth
        least, low, high = min(LEAST, self.keep), -1.0, 2.0  # all layers at the least, and all dense
        for _ in range(50):
            middle = (low + high) / 2
            mean = sum(schedule(depth, self.target, last, middle, least)) / depth
            low, high = (middle, high) if mean <= self.keep else (low, middle)
        return schedule(depth, self.target, last, low, least)

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """The MoD layers with their ratios."""
        self._depth = self._depth or depth
        return tuple(Loan(layer, ratio) for layer, ratio in enumerate(self.ratios(depth)) if ratio < 1)

    def check_model(self, model: ModelFacts) -> None:
        """See ``TrainedCompressor``; a new network has a router for each layer of this model."""
        self._depth = model.layers
        super().check_model(model)

    def sizes_for(self, tokens: VisualTokens) -> dict[str, Any]:
        """Width and depth of the language model."""
        return {"width": tokens.features.shape[-1], "layers": self._depth}

    @classmethod
    def build(cls, sizes: Mapping[str, Any]) -> nn.Module:
        """``PModRouters``."""
        return PModRouters(sizes["width"], sizes["layers"])

    def select(self, tokens: VisualTokens, k: int) -> Lent:
        """The tokens with the largest gates, and all gates `[B, N]` float32."""
        gate: Tensor = self.run(tokens, tokens.features, layer=tokens.layer)
        return Lent(top_k(gate.detach(), k, tokens.valid), gate)
