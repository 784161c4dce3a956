"""What a sweep's table says: comparisons with random at the same budget, corrected over the table, and ranks."""

from __future__ import annotations

from collections.abc import Sequence

from .against_smaller import compare_with_smaller
from .cell_summary import CellSummary
from .equal_budget import match_cells, random_partner, same_budget
from .paired import Questions
from .pooled_seeds import Line
from .power import MARGIN
from .ranking import rank_intervals
from .significance import NO_BASELINE, holm, verdict


def compare_all(
    summaries: Sequence[CellSummary], lines: Sequence[Line], questions: Questions, match: str, margin: float = MARGIN
) -> None:
    """Fill in what needs more than one cell.

    Parameters
    ----------
    summaries, lines : sequence
        The cells of a sweep, and the results behind each.
    questions : Questions
        Images and tasks.
    match : str
        Which random cell a method is compared with, and which methods are ranked together; see ``match_cells``.
    margin : float
        The difference that a sample should be able to tell.
    """
    line_of = {s.spec: line for s, line in zip(summaries, lines, strict=True)}
    randoms, compared = [s for s in summaries if s.is_random], []
    for s in summaries:
        partner = None if s.is_random or s.is_unpruned else random_partner(s, randoms, match)
        if partner is not None and not same_budget(s, partner, match):
            s.verdict = f"{NO_BASELINE}, the nearest is {partner.label}"
            continue
        found = questions.compare(line_of[s.spec].runs, line_of[partner.spec].runs, margin) if partner else None
        if partner is not None and found is not None:
            compared.append((s, found))
            s.against = f"{partner.label}, {partner.tokens_per_layer:.4g} tokens per layer to {s.tokens_per_layer:.4g}"
            s.against_ratio = s.tokens_per_layer / partner.tokens_per_layer if partner.tokens_per_layer else None
            s.against_random, s.p_value = found.difference, found.p_value
            s.detectable, s.needed = found.detectable, found.needed
    _correct(summaries)
    for s, found in compared:
        p_holm = found.p_value if s.p_holm is None else s.p_holm
        s.verdict = verdict(found.difference, found.p_value, p_holm, found.detectable, found.needed, margin=margin)
    _rank(summaries, line_of, questions, match)
    compare_with_smaller(summaries, line_of, questions, match)


def _correct(summaries: Sequence[CellSummary]) -> None:
    """Holm's correction of each column of p-values."""
    tested = [(s, s.p_value) for s in summaries if s.p_value is not None]
    for (s, _), p in zip(tested, holm([p for _, p in tested]), strict=True):
        s.p_holm = p
    tested = [(s, s.p_mcnemar) for s in summaries if s.p_mcnemar is not None]
    for (s, _), p in zip(tested, holm([p for _, p in tested]), strict=True):
        s.p_mcnemar_holm = p


def _rank(summaries: Sequence[CellSummary], line_of: dict[str, Line], questions: Questions, match: str) -> None:
    """Ranks among the cells of each budget, on the questions that all of them have answered."""
    for group in match_cells(summaries, match):
        ids = questions.common(*(line_of[s.spec].scores for s in group.cells.values())) if len(group.cells) > 1 else ()
        if not ids:
            continue
        drawn, means = questions.draw(ids), {}
        for method, s in group.cells.items():
            scores = [line_of[s.spec].scores[q] for q in ids]
            means[method] = (drawn.value(scores), drawn.means(scores))
        for method, rank in rank_intervals(means).items():
            cell = group.cells[method]
            if cell.rank is None:
                cell.rank, cell.ranked = rank, len(means)
