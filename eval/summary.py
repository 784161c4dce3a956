"""From result rows to one line per cell: accuracies, paired differences with intervals, and costs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .cells import DEPTH, UNPRUNED, Cell, is_random
from .compare import Questions, flips, mcnemar_of
from .matching import keep_text
from .metrics import official
from .pooling import Line, pool_lines
from .power import MARGIN
from .stats import Interval
from .store import ResultStore
from .tasks import TaskSet
from .timing import PrefillTime
from .verdicts import compare_all

REPS = 2000


@dataclass
class CellSummary:
    """Results of one cell; ratios are to the unpruned model on the same samples, None where they were not measured.

    Cells that differ only in their seed are pooled: ``specs`` and ``seeds`` name them all, ``spec`` the first, and a
    question's score is the mean of their scores. Accuracies are in [0, 1].

    Attributes
    ----------
    flips, flips_down, flips_up : float, optional
        Share of questions whose score differs from the unpruned model's, and of those that fell (right -> wrong) and
        rose (wrong -> right); ``p_mcnemar`` is the exact test of the two, ``p_mcnemar_holm`` the same over the table.
    against, against_random, verdict
        The random cell of the same budget in words, the paired difference to its seeds, and what follows from it;
        ``against_ratio`` are the tokens per layer as a ratio to that cell's.
    p_value, p_holm : float, optional
        Of ``exchange_test`` against random, and the same corrected over the table.
    detectable, needed
        Smallest difference to random that this sample would find (80% power), and the sample that two points need.
    rank : Interval, optional
        Among the ``ranked`` methods of the same budget; 1 is best.
    official : dict
        The metrics of each task under their official names.
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
    specs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    flips_down: float | None = None
    flips_up: float | None = None
    p_mcnemar: float | None = None
    p_mcnemar_holm: float | None = None
    against: str = ""
    against_ratio: float | None = None
    against_random: Interval | None = None
    p_value: float | None = None
    p_holm: float | None = None
    detectable: float | None = None
    needed: int | None = None
    verdict: str = ""
    rank: Interval | None = None
    ranked: int = 0
    official: dict[str, dict[str, float]] = field(default_factory=dict)
    cost: Any = None

    @property
    def is_unpruned(self) -> bool:
        """Whether it is the plain model."""
        return self.spec == UNPRUNED.spec

    @property
    def is_random(self) -> bool:
        """Whether it is a random baseline, of whatever parameters."""
        return is_random(self.method)

    @property
    def label(self) -> str:
        """Method, keep and seeds as people write them."""
        seeds = f" ({len(self.specs)} seeds)" if len(self.specs) > 1 else ""
        return f"{self.method} {keep_text(self.keep)}".strip() + seeds

    def flat(self) -> dict[str, Any]:
        """One row of ``summary.csv``."""
        row: dict[str, Any] = {"method": self.method, "keep": self.keep, "spec": self.spec, "seeds": len(self.seeds)}
        row |= {"n": self.n, "complete": self.complete}
        row |= {f"accuracy_{task}": value for task, value in self.accuracy.items()}
        row |= _ends("accuracy", self.mean, "accuracy_mean")
        row |= _ends("difference", self.difference or (Interval(0.0, 0.0, 0.0) if self.is_unpruned else None))
        row |= {"flip_rate": self.flips, "flips_down": self.flips_down, "flips_up": self.flips_up}
        row |= {"p_mcnemar": self.p_mcnemar, "p_mcnemar_holm": self.p_mcnemar_holm}
        row |= {"against": self.against, "against_ratio": self.against_ratio}
        row |= _ends("random_difference", self.against_random)
        row |= {"p_value": self.p_value, "p_holm": self.p_holm, "detectable": self.detectable, "needed": self.needed}
        row |= {"verdict": self.verdict, **_ends("rank", self.rank)}
        row |= {"tokens_total": self.tokens_total, "tokens_asked": self.tokens_asked, "tokens_kept": self.tokens_kept}
        row |= {"tokens_mean_per_layer": self.tokens_per_layer, "kv_ratio": self.kv_ratio, "lm_flops": self.lm_flops}
        row |= {"lm_flops_ratio": self.lm_flops_ratio, "flops_ratio": self.flops_ratio}
        row |= {"prefill_ratio": self.time.ratio if self.time else None}
        row |= {"lm_prefill_ratio": self.time.lm_ratio if self.time else None}
        row |= {"prefill_seconds": self.time.seconds if self.time else None}
        row |= self.cost.flat() if self.cost else {}
        figures = ((task, name, value) for task, found in self.official.items() for name, value in found.items())
        row |= {f"{task}_{name}": value for task, name, value in figures if "/" not in name}  # not of each category
        return {name: ("" if value is None else value) for name, value in row.items()}


def _ends(name: str, interval: Interval | None, value: str = "") -> dict[str, float | None]:
    found = interval or (None, None, None)
    return dict(zip((value or name, f"{name}_low", f"{name}_high"), found, strict=True))


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return statistics.fmean(row[name] for row in rows) if rows and name in rows[0] else None


def _asked(cell: Cell, rows: Iterable[Mapping[str, Any]]) -> float:
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
    match: str = "keep",
    margin: float = MARGIN,
) -> list[CellSummary]:
    """One summary per line of cells that has any result.

    Of an unfinished sweep the differences compare what both cells have; ``complete`` says whether that is everything.

    Parameters
    ----------
    match : str
        Which random cell a method is compared with, and which methods are ranked together; see ``match_cells``.
    margin : float
        The difference to random that a sample should be able to tell, in accuracy; a verdict says where it can't.
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
    return summaries


def _summary(line: Line, questions: Questions, tasks: TaskSet, base: Mapping[str, float]) -> CellSummary:
    rows, scores, cell = line.every_row, line.scores, line.first
    total, kept, per_layer = (
        statistics.fmean(row[name] for row in rows) for name in ("visual_total", "visual_kept", "visual_mean_per_layer")
    )
    of_task: dict[str, dict[str, float]] = {task: {} for task in tasks.tasks}
    for q, score in scores.items():
        of_task[str(questions.task_of[q])][q] = score
    summary = CellSummary(
        method=cell.method, keep=cell.keep, spec=cell.spec, n=len(scores),
        complete=line.complete(questions.image_of.keys()),
        accuracy={task: statistics.fmean(part.values()) for task, part in of_task.items() if part},
        mean=questions.interval(scores), difference=None, flips=None,
        tokens_total=total, tokens_asked=_asked(cell, rows), tokens_kept=kept, tokens_per_layer=per_layer,
        specs=tuple(c.spec for c in line.cells), seeds=line.seeds, official=_official(line, tasks),
    )  # fmt: skip
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
