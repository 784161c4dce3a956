"""A method beside the same pictures made smaller: at as many tokens, in as much time, on easy and hard questions.

A question is easy if the model answers it rightly from a smaller picture of as many tokens, else hard: what a method is
for are the hard ones (VTC-Bench, arXiv 2510.07143, splits its questions so).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from .beside_the_mean import AgainstSmaller, Part
from .cell_summary import CellSummary
from .equal_budget import random_partner, same_budget
from .paired import Questions
from .pooled_seeds import Line

NEAR = 0.25  # a picture's size changes by whole patches: a square has 49 or 64 tokens, and not 63


def compare_with_smaller(
    summaries: Sequence[CellSummary], line_of: Mapping[str, Line], questions: Questions, match: str
) -> None:
    """Fill in ``against_smaller`` of the pruned cells, where the sweep has ``downsample``.

    Parameters
    ----------
    summaries : sequence of CellSummary
        The cells of a sweep, times filled in.
    line_of : mapping
        The results behind each, by spec.
    questions : Questions
        Images and tasks.
    match : str
        By what tokens are equal; see ``random_partner``.
    """
    small = [s for s in summaries if s.is_smaller]
    for s in summaries:
        if small and not (s.is_smaller or s.is_unpruned):
            s.against_smaller = _compare(s, small, line_of, questions, match)


def _compare(
    s: CellSummary, small: Sequence[CellSummary], line_of: Mapping[str, Line], questions: Questions, match: str
) -> AgainstSmaller:
    found, scores = AgainstSmaller(), line_of[s.spec].scores
    partner = random_partner(s, small, match)
    if partner is not None and same_budget(s, partner, match, NEAR):
        theirs = line_of[partner.spec].scores
        both = scores.keys() & theirs.keys()
        found.partner, found.tokens = partner.label, partner.tokens_per_layer
        found.difference = questions.interval(scores, theirs) if both else None
        found.easy, found.hard = (
            Part(len(ids), statistics.fmean(scores[q] for q in ids) if ids else None)
            for ids in ([q for q in both if theirs[q] > 0.5], [q for q in both if theirs[q] <= 0.5])
        )
    timed = _equal_time(s, small)
    if timed is not None:
        theirs = line_of[timed.spec].scores
        found.timed = timed.label
        found.timed_difference = questions.interval(scores, theirs) if scores.keys() & theirs.keys() else None
    return found


def _equal_time(s: CellSummary, small: Sequence[CellSummary]) -> CellSummary | None:
    """The largest of the smaller pictures whose whole prefill is no slower."""
    if s.time is None:
        return None
    fast = [c for c in small if c.time is not None and c.time.seconds <= s.time.seconds]
    return max(fast, key=lambda c: c.time.seconds if c.time else 0.0, default=None)
