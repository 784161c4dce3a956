"""Which FLOPs a table, a chart or a headline shows: the same ones everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from .cell_summary import CellSummary

WHOLE, LANGUAGE = "whole", "language"


def flops_shown(cells: Sequence[CellSummary]) -> str:
    """``WHOLE`` (tower included) where that was counted for every line of a sweep, else ``LANGUAGE``, the LM's."""
    known = [c for c in cells if c.flops_ratio is not None or c.lm_flops_ratio is not None]
    return LANGUAGE if any(c.flops_ratio is None for c in known) else WHOLE


def flops_ratio(cell: CellSummary, shown: str) -> float | None:
    """A cell's FLOPs as a ratio to unpruned, of the kind that is shown."""
    return cell.flops_ratio if shown == WHOLE else cell.lm_flops_ratio


def flops_words(shown: str, classifier: bool = False) -> str:
    """What they are, for an axis or a column."""
    if classifier:
        return "FLOPs"
    return "prefill FLOPs with the tower" if shown == WHOLE else "language model's FLOPs"
