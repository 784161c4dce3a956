"""From result rows to one line per cell: accuracies, paired differences with intervals, and costs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from vtc.eval.cost.interleaved_timing import PrefillTime, prefill_times
from vtc.eval.cost.prefill_cost import Cost
from vtc.eval.sweep.options import REPS
from vtc.eval.sweep.results_store import ResultStore
from vtc.eval.sweep.sweep_run import Sweep
from vtc.eval.tasks.metrics import official
from vtc.eval.tasks.questions import TaskSet
from vtc.eval.vlm.pruning_settings import DEPTH, UNPRUNED, Cell

from .cell_summary import CellSummary
from .hidden_scores import add_hidden
from .paired import Questions, flips, mcnemar_of
from .pooled_seeds import Line, Rows, pool_lines
from .power import MARGIN
from .verdicts import compare_all


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return statistics.fmean(row[name] for row in rows) if rows and name in rows[0] else None


def _asked(cell: Cell, rows: Iterable[Mapping[str, Any]]) -> float:
    """Tokens that the cell's last step was asked to keep, averaged over the samples."""
    from vtc.pruners.base import resolve_keep

    totals = [row["visual_total"] for row in rows]
    keep = cell.keep if cell.keep is not None else last_keep(cell.spec)
    return statistics.fmean(totals if keep is None else [resolve_keep(keep, n) for n in totals])


def last_keep(spec: str) -> int | float | None:
    """The keep of a pipeline's last method; None for the unpruned model, and where tokens go round layers only."""
    if spec == UNPRUNED.spec:  # of smaller pictures the cell says it
        return None
    from vtc.pipeline_text import parse
    from vtc.pruners.base import Loan

    last = parse(spec)[-1]
    stop = last.stops(DEPTH)[-1]
    if isinstance(stop, Loan):  # all come back
        return None
    return stop.keep if last.keep is None else last.keep


def summarise(
    store: ResultStore,
    tasks: TaskSet,
    cells: Sequence[Cell],
    times: Mapping[str, PrefillTime] | None = None,
    vision: Mapping[str, int] | None = None,
    seed: int = 0,
    reps: int = REPS,
    match: str = "keep",
    margin: float = MARGIN,
    second: Mapping[str, Rows] = MappingProxyType({}),
) -> list[CellSummary]:
    """One summary per line of cells that has any result.

    Of an unfinished sweep the differences compare what both cells have; ``complete`` says whether that is everything.

    Parameters
    ----------
    match : str
        Which random cell a method is compared with, and which methods are ranked together; see ``match_cells``.
    margin : float
        The difference to random that a sample should be able to tell, in accuracy; a verdict says where it can't.
    second : mapping
        Rows of second questions by spec.
    """
    wanted = {q.question_id: q for q in tasks.questions}
    found: dict[str, dict[str, Mapping[str, Any]]] = {c.spec: {} for c in cells}
    for (spec, q), row in store.rows.items():
        if spec in found and q in wanted:
            found[spec][q] = row
    questions = Questions(
        {i: q.image_id for i, q in wanted.items()}, {i: q.task for i, q in wanted.items()}, reps, seed
    )
    lines = [line for line in pool_lines(cells, found) if line.scores]
    base = next((line.scores for line in lines if not line.pruned), {})
    summaries = []
    for line in lines:
        summary = _summary(line, questions, tasks, base)
        summary.time = next((t for c in line.cells if (t := (times or {}).get(c.spec))), None)
        _add_cost(summary, line.every_row, vision or {})
        summaries.append(summary)
    compare_all(summaries, lines, questions, match, margin)
    add_hidden(summaries, lines, wanted, questions, second)
    return summaries


def summarise_sweep(
    store: ResultStore,
    sweep: Sweep,
    costs: Mapping[str, Cost],
    seed: int = 0,
    match: str = "keep",
    second: ResultStore | None = None,
) -> list[CellSummary]:
    """``summarise`` of a sweep with what its lines cost, by spec, and with its `second` questions."""
    towers = {spec: n for spec, c in costs.items() if (n := c.tower_flops) is not None}
    times, vision = prefill_times(costs), towers if sweep.cost else None
    again = {cell.spec: second.cell(cell.spec) for cell in sweep.cells} if second else {}
    summary = summarise(store, sweep.tasks, sweep.cells, times, vision, seed=seed, match=match, second=again)
    for line in summary:
        line.cost = costs.get(line.spec)
    return summary


def _summary(line: Line, questions: Questions, tasks: TaskSet, base: Mapping[str, float]) -> CellSummary:
    rows, scores, cell = line.every_row, line.scores, line.first
    total, kept, per_layer = (
        statistics.fmean(row[name] for row in rows) for name in ("visual_total", "visual_kept", "visual_mean_per_layer")
    )
    of_task: dict[str, dict[str, float]] = {task: {} for task in tasks.tasks}
    for q, score in scores.items():
        of_task[str(questions.task_of[q])][q] = score
    summary = CellSummary(
        method=cell.method,
        keep=cell.keep,
        spec=cell.spec,
        n=len(scores),
        complete=line.complete(questions.image_of.keys()),
        accuracy={task: statistics.fmean(part.values()) for task, part in of_task.items() if part},
        mean=questions.interval(scores),
        difference=None,
        flips=None,
        tokens_total=total,
        tokens_asked=_asked(cell, rows),
        tokens_kept=kept,
        tokens_per_layer=per_layer,
        specs=tuple(c.spec for c in line.cells),
        seeds=line.seeds,
        official=_official(line, tasks),
    )
    if not line.pruned or not scores.keys() & base.keys():
        return summary
    summary.difference = questions.interval(scores, base)
    changed = [(flips(run, base), len(run.keys() & base.keys())) for run in line.runs if run.keys() & base.keys()]
    summary.flips_down = statistics.fmean(down / n for (down, _), n in changed)
    summary.flips_up = statistics.fmean(up / n for (_, up), n in changed)
    summary.flips = summary.flips_down + summary.flips_up
    if len(line.runs) == 1:
        summary.p_mcnemar = mcnemar_of(scores, base)
    for task, part in of_task.items():
        if part.keys() & base.keys():
            summary.difference_by_task[task] = questions.interval(part, base)
    return summary


def _official(line: Line, tasks: TaskSet) -> dict[str, dict[str, float]]:
    """The figures of each task, averaged over the seeds that have them."""
    runs = [official(tasks.questions, rows) for rows in line.rows if rows]
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for task, figures in run.items():
            for name, value in figures.items():
                found.setdefault(task, {}).setdefault(name, []).append(value)
    return {task: {name: statistics.fmean(v) for name, v in figures.items()} for task, figures in found.items()}


def _add_cost(summary: CellSummary, rows: Sequence[Mapping[str, Any]], vision: Mapping[str, int]) -> None:
    """FLOPs and KV memory; `vision` has the tower's FLOPs of the unpruned model and of cells that prune inside it."""
    flops, full = _mean(rows, "lm_flops"), _mean(rows, "lm_flops_unpruned")
    kv, kv_full = _mean(rows, "kv_bytes"), _mean(rows, "kv_bytes_unpruned")
    if flops is None or full is None or kv is None or kv_full is None:
        if summary.spec in vision and UNPRUNED.spec in vision:  # a tower without a language model
            summary.flops_ratio = vision[summary.spec] / vision[UNPRUNED.spec]
        return
    summary.lm_flops, summary.lm_flops_ratio, summary.kv_ratio = flops, flops / full, kv / kv_full
    if UNPRUNED.spec in vision:
        tower = vision[UNPRUNED.spec]
        summary.flops_ratio = (flops + vision.get(summary.spec, tower)) / (full + tower)
