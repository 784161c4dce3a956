"""VTW: from some decoder layer on there are no visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.pruners.primitives.budget_over_stops import scaled_layer

from .base import Pruner, Stop
from .registry import register_pruner
from .visual_tokens import VisualTokens

PAPER = 15, 32  # layer and depth of LLaVA-1.5-7B


@register_pruner("vtw")
@dataclass(kw_only=True)
class VTW(Pruner):
    """VTW (Lin et al., AAAI 2025, arXiv 2405.05803): visual tokens are withdrawn at a layer, all of them.

    Parameters
    ----------
    keep : float, optional
        Share of the decoder layers that see the image, which is the average of what a layer keeps: `K` is
        ``round(keep * depth)``. A count of tokens means nothing here.
    layer : int, optional
        K itself: the first layer without visual tokens. By default the paper's 15 of 32 layers, scaled to the depth.

    Notes
    -----
    Stage: decoder. Nothing is scored: all visual tokens leave before layer K, positions of the others stay (the
    authors' default). The cache of layers >= K never holds a visual token. The authors search K: the first layer, from
    5 on, at which withdrawal changes the last token's prediction by a mean KL divergence of at most eta over about 20
    samples (eta = 0.003 for LLaVA-1.5-7B, 0.0005 for 13B, 0.0001 for LLaVA-NeXT-7B): ``vtc horizon --search vtw``. This
    is also the "information horizon" (arXiv 2512.07580) taken at its word.
    """

    layer: int | None = None

    stage: ClassVar[str] = "decoder"
    paper: ClassVar[str] = "arXiv 2405.05803"
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep is not None and self.layer is not None:
            raise ValueError(
                f"vtw: keep={self.keep} and layer={self.layer} both say where to withdraw; give one of them"
            )
        if self.keep is not None and not isinstance(self.keep, float):
            raise ValueError(
                f"vtw.keep={self.keep} must be a fraction, the share of the layers that see the image; "
                "vtw keeps all tokens there and none behind"
            )

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """Layer K; nowhere when all layers see the image."""
        if isinstance(self.keep, float):
            layer = max(1, int(self.keep * depth + 0.5))
            return (Stop(self.stage, layer, 0),) if layer < depth else ()
        return (Stop(self.stage, scaled_layer(*PAPER, depth) if self.layer is None else self.layer, 0),)

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """Never asked: nothing is kept."""
        raise NotImplementedError("vtw keeps nothing, so there is nothing to choose")
