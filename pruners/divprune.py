"""DivPrune: the most diverse subset of the projected tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.pruners.primitives.greedy import farthest_point

from .base import Pruner
from .registry import register_pruner
from .visual_tokens import VisualTokens


@register_pruner("divprune")
@dataclass(kw_only=True)
class DivPrune(Pruner):
    """DivPrune (Alvar et al., CVPR 2025, arXiv 2503.02175): max-min diversity of the projected tokens.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly. The authors' default is 0.098.

    Notes
    -----
    Stage: input; reads projected features `[B, N, D]` and nothing else. With ``d_ij = 1 - cos(x_i, x_j)`` the first
    token is the one farthest from its nearest other token, ``argmax_i min_{j != i} d_ij``; then
    ``argmax_i min_{j chosen} d_ij`` until k. O(N^2 D) for the first token and O(k N) after it.

    The authors keep ``round(ratio N)`` (Python's, half to even), which is this package's count but for exact halves.
    With duplicated features their argmax may take a token twice; here it can't. On LLaVA-NeXT they choose among all
    views' tokens jointly, newline features included; here newline tokens are no candidates. Limits: attends to neither
    question nor importance; noise is diverse, too.
    """

    paper: ClassVar[str] = "arXiv 2503.02175"
    ragged: ClassVar[bool] = True

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """Greedy max-min diversity, `[B, k]` in the order chosen."""
        return farthest_point(tokens.features, k, tokens.valid)
