"""From result rows to one line per cell: accuracies, paired differences with intervals, and costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .cells import DEPTH, UNPRUNED, Cell
from .stats import Interval, cluster_bootstrap, paired_difference
from .store import ResultStore
from .tasks import TaskSet
from .timing import PrefillTime

REPS = 2000


@dataclass
class CellSummary:
    """Results of one cell; ratios are to the unpruned model on the same samples, None where they were not measured.

    Accuracies are in [0, 1]. ``flips`` is the share of questions whose score differs from the unpruned model's.
    """

    method: str
    keep: int | float | None
    spec: str
    n: int
    complete: bool
    accuracy: dict[str, float]
    mean: Interval
    difference: Interval | None
    flips: float | None
    tokens_total: float
    tokens_asked: float
    tokens_kept: float
    tokens_per_layer: float
    kv_ratio: float | None = None
    lm_flops: float | None = None
    lm_flops_ratio: float | None = None
    flops_ratio: float | None = None
    time: PrefillTime | None = None
    difference_by_task: dict[str, Interval] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """One row of ``summary.csv``."""
        gap = self.difference or Interval(0.0, 0.0, 0.0)
        row: dict[str, Any] = {"method": self.method, "keep": "" if self.keep is None else self.keep, "spec": self.spec}
        row |= {"n": self.n, "complete": self.complete}
        row |= {f"accuracy_{task}": value for task, value in self.accuracy.items()}
        row |= {"accuracy_mean": self.mean.value, "accuracy_low": self.mean.low, "accuracy_high": self.mean.high}
        row |= {
            "difference": gap.value,
            "difference_low": gap.low,
            "difference_high": gap.high,
            "flip_rate": self.flips,
        }
        row |= {"tokens_total": self.tokens_total, "tokens_asked": self.tokens_asked, "tokens_kept": self.tokens_kept}
        row |= {"tokens_mean_per_layer": self.tokens_per_layer, "kv_ratio": self.kv_ratio, "lm_flops": self.lm_flops}
        row |= {"lm_flops_ratio": self.lm_flops_ratio, "flops_ratio": self.flops_ratio}
        row |= {"prefill_ratio": self.time.ratio if self.time else None}
        row |= {"lm_prefill_ratio": self.time.lm_ratio if self.time else None}
        row |= {"prefill_seconds": self.time.seconds if self.time else None}
        return {name: ("" if value is None else value) for name, value in row.items()}


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return statistics.fmean(row[name] for row in rows) if rows and name in rows[0] else None


def _asked(cell: Cell, rows: Sequence[Mapping[str, Any]]) -> float:
    """Tokens that the cell's last step was asked to keep, averaged over the samples."""
    from vtc.pruners.base import resolve_keep

    totals = [row["visual_total"] for row in rows]
    keep = cell.keep if cell.keep is not None else last_keep(cell.spec)
    return statistics.fmean(totals if keep is None else [resolve_keep(keep, n) for n in totals])


def last_keep(spec: str) -> int | float | None:
    """The keep of a pipeline's last method; None for the unpruned model."""
    if spec == UNPRUNED.spec:
        return None
    from vtc.spec import parse

    last = parse(spec)[-1]
    return last.stops(DEPTH)[-1].keep if last.keep is None else last.keep


def summarise(
    store: ResultStore,
    tasks: TaskSet,
    cells: Sequence[Cell],
    times: Mapping[str, PrefillTime] | None = None,
    vision: Mapping[str, int] | None = None,
    seed: int = 0,
    reps: int = REPS,
) -> list[CellSummary]:
    """One summary per cell that has any result.

    Of an unfinished sweep the differences compare what both cells have; ``complete`` says whether that is everything.
    """
    wanted = {q.question_id: q for q in tasks.questions}
    image = {q.question_id: q.image_id for q in tasks.questions}
    task = {q.question_id: q.task for q in tasks.questions}
    found = {c.spec: {q: r for q, r in store.cell(c.spec).items() if q in wanted} for c in cells}
    base = {q: row["score"] for q, row in found.get(UNPRUNED.spec, {}).items()}
    summaries = []
    for cell in cells:
        by_question = {q: found[cell.spec][q] for q in wanted if q in found[cell.spec]}
        rows = list(by_question.values())
        if not rows:
            continue
        scores = {q: row["score"] for q, row in by_question.items()}
        ids = list(scores)
        total, kept, per_layer = (
            statistics.fmean(row[name] for row in rows)
            for name in ("visual_total", "visual_kept", "visual_mean_per_layer")
        )
        images, asked_tasks = [image[q] for q in ids], [task[q] for q in ids]
        summary = CellSummary(
            method=cell.method, keep=cell.keep, spec=cell.spec, n=len(rows), complete=len(rows) == len(wanted),
            accuracy={t: statistics.fmean(v) for t in tasks.tasks if (v := [scores[q] for q in ids if task[q] == t])},
            mean=cluster_bootstrap(list(scores.values()), images, asked_tasks, seed=seed, reps=reps),
            difference=None, flips=None,
            tokens_total=total, tokens_asked=_asked(cell, rows), tokens_kept=kept, tokens_per_layer=per_layer,
        )  # fmt: skip
        both = [q for q in ids if q in base]
        if cell is not UNPRUNED and both:
            summary.difference = paired_difference(scores, base, image, task, seed=seed, reps=reps)
            summary.flips = statistics.fmean(scores[q] != base[q] for q in both)
            for t in summary.accuracy:
                part = {q: scores[q] for q in both if task[q] == t}
                if part:
                    summary.difference_by_task[t] = paired_difference(part, base, image, task, seed=seed, reps=reps)
        summary.time = (times or {}).get(cell.spec)
        _add_cost(summary, rows, vision or {})
        summaries.append(summary)
    return summaries


def _add_cost(summary: CellSummary, rows: Sequence[Mapping[str, Any]], vision: Mapping[str, int]) -> None:
    """FLOPs and KV memory; `vision` has the tower's FLOPs of the unpruned model and of cells that prune inside it."""
    flops, full = _mean(rows, "lm_flops"), _mean(rows, "lm_flops_unpruned")
    kv, kv_full = _mean(rows, "kv_bytes"), _mean(rows, "kv_bytes_unpruned")
    if flops is None or full is None or kv is None or kv_full is None:
        return
    summary.lm_flops, summary.lm_flops_ratio, summary.kv_ratio = flops, flops / full, kv / kv_full
    if UNPRUNED.spec in vision:
        tower = vision[UNPRUNED.spec]
        summary.flops_ratio = (flops + vision.get(summary.spec, tower)) / (full + tower)
