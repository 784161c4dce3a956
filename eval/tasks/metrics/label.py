"""The class that a classifier names: top-1, and top-5 where its ranking is known."""

from __future__ import annotations

from vtc.eval.tasks.questions import Question

from .base import Metric, Rows, by_category, mean_score, register, share


@register
class Label(Metric):
    """The named class is the right one. A row's "rank" is the place of the right class among the outputs, from 1."""

    name = "label"

    def parse(self, question: Question, prediction: str) -> str:
        """The class as it is."""
        return prediction

    def aggregate(self, rows: Rows) -> dict[str, float]:
        """``accuracy`` is top-1; ``top5`` where every row has a rank."""
        found = by_category(rows, mean_score)
        if rows and all("rank" in row for row in rows):
            found["top5"] = share(rows, lambda row: row["rank"] <= 5)
        return found
