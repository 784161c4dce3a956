"""The base of methods that give each token a score of its own, by which the best are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.pruners.base import Pruner
from vtc.pruners.check_returned_values import check_score
from vtc.pruners.visual_tokens import VisualTokens

from .ranking import top_k


@dataclass(kw_only=True)
class ScorePruner(Pruner):
    """A method that scores each token by itself; the best `k` are kept, ties go to the lowest index."""

    ragged: ClassVar[bool] = True

    def score(self, tokens: VisualTokens) -> Tensor:
        """Importance of each token, `[B, N]`, higher is better. Padding may hold anything."""
        raise NotImplementedError

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """The `k` best-scored tokens of each row, best first."""
        return top_k(check_score(self, self.score(tokens), tokens.valid), k, tokens.valid)
