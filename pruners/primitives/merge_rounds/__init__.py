"""Bipartite merging in rounds (ToMe): which tokens become one. Two engines, one choice: in float64 where it is close.

In: tokens, how many each stands for, and how many go in each round.
Out: which are left, and which of these each token belongs to.
Uses: pruners.primitives.
"""

from .matching import Match, bipartite_match, merged_cosine, merged_match
from .rounds import Merging, merge_rounds

__all__ = ["Match", "Merging", "bipartite_match", "merge_rounds", "merged_cosine", "merged_match"]
