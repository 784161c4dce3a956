"""Methods beside the same pictures made smaller, as rows of texts for the screen and the reports."""

from __future__ import annotations

from collections.abc import Sequence

from vtc.eval.reports.wording import numbers_in_words as words
from vtc.eval.statistics.beside_the_mean import Part
from vtc.eval.statistics.cell_summary import CellSummary, keep_text
from vtc.eval.statistics.intervals import Interval

TITLE = "Beside smaller pictures"
HEADS = ("method", "keep", "tokens", "vs downsample", "easy", "hard", "as fast", "vs that")
ABOUT = (
    "downsample: the stock model on smaller pictures of about as many tokens as the method has in a layer; differences "
    "in points, paired by question, with 95% intervals. Easy questions are right on those pictures, hard ones are not: "
    "the share of each that a method has right (%). As fast: the largest smaller pictures whose whole prefill is no "
    "slower. A tower trained on one size may be blind on smaller pictures: then this compares with little."
)


def smaller_rows(cells: Sequence[CellSummary]) -> list[tuple[str, ...]]:
    """A row under ``HEADS`` for each cell that was compared; none where the sweep has no ``downsample``."""
    rows: list[tuple[str, ...]] = []
    for cell in cells:
        found = cell.against_smaller
        if found is not None and (found.partner or found.timed):
            tokens = words.NONE if found.tokens is None else words.count(found.tokens)
            timed = found.timed.removeprefix("downsample").strip() or words.NONE
            parts = tokens, _gap(found.difference), _part(found.easy), _part(found.hard)
            rows.append((cell.method, keep_text(cell.keep), *parts, timed, _gap(found.timed_difference)))
    return rows


def _gap(interval: Interval | None) -> str:
    return words.NONE if interval is None else f"{words.points(interval)} {words.ends(interval, False)}".strip()


def _part(part: Part | None) -> str:
    if part is None or part.accuracy is None:
        return words.NONE
    return f"{words.percent(part.accuracy)} of {words.count(part.n)}"
