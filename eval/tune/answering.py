"""Answers and costs of settings, computed by the sweep runner and kept in its results files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from vtc.eval.files.atomic import write_atomic
from vtc.eval.sweep.cell_costs import first_row
from vtc.eval.sweep.results_store import ResultStore
from vtc.eval.sweep.sweep_run import ENCODING, Sweep, missing
from vtc.eval.sweep.worker_processes import compute, useful_workers
from vtc.eval.tasks.questions import Question
from vtc.eval.terminal.progress_bars_and_eta import Estimator
from vtc.eval.vlm.feature_cache import pruned
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell
from vtc.pruners.untrusted_json import parse_json

from .successive_halving import Answered

REPEATS = 5
LATER = "later"
WORTH = 2000  # answers for which further processes are started, each of which loads the model


@dataclass
class Answering:
    """Has settings answer questions; what the results files hold is not computed again.

    ``sweep`` has all cells, the unpruned one too, and all questions; ``later`` says how many answers are expected to
    follow each stage, for the estimate of the time left.
    """

    sweep: Sweep
    store: ResultStore
    progress: Progress
    by: str
    source: tuple[str | None, str, str]
    workers: int | None = 1
    later: Sequence[int] = ()
    _stage: int = 0
    _tower: dict[str, int] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._cells = {cell.spec: cell for cell in self.sweep.cells}
        self._estimator = Estimator(dict.fromkeys([*self._cells, ENCODING, LATER], 0))

    def __call__(self, specs: Sequence[str], questions: Sequence[Question], what: str) -> Mapping[str, Answered]:
        """Scores and cost of each setting on `questions`."""
        self._run([self._cells[spec] for spec in specs], questions, what)
        rows = {spec: [self.store.rows[spec, q.question_id] for q in questions] for spec in specs}
        return {
            spec: Answered({row["question_id"]: row["score"] for row in found}, self._cost(spec, found))
            for spec, found in rows.items()
        }

    def _run(self, cells: Sequence[Cell], questions: Sequence[Question], what: str) -> None:
        part = replace(self.sweep, cells=cells, tasks=self.sweep.tasks.part(questions))
        left = missing(part, self.store)
        asked = 1 if self.workers is None and left < WORTH else self.workers
        workers = useful_workers(part, asked) if left else 1
        estimator = self._estimator
        estimator.left.update({cell.spec: len(questions) for cell in cells})
        estimator.left[ENCODING] = len(part.tasks.groups()) if workers == 1 else 0
        estimator.left[LATER] = self.later[self._stage] if self._stage < len(self.later) else 0
        self._stage += 1
        compute(part, self.store, workers, self.source, self.progress, estimator, what)

    def _cost(self, spec: str, rows: Sequence[Mapping[str, Any]]) -> float:
        """What a setting costs as a ratio to the unpruned model."""
        if spec == UNPRUNED.spec:
            return 1.0
        if self.by == "prefill":
            return self._seconds[spec] / self._seconds[UNPRUNED.spec]
        spent, full = ("visual_mean_per_layer", "visual_total")
        if self.by == "flops":
            spent, full = ("lm_flops", "lm_flops_unpruned")
        fixed = [self._tower_flops(s) if self.by == "flops" else 0 for s in (spec, UNPRUNED.spec)]
        here, whole = (statistics.fmean(row[name] for row in rows) for name in (spent, full))
        return (here + fixed[0]) / (whole + fixed[1])

    def _tower_flops(self, spec: str) -> int:
        """FLOPs of tower and projector on the first question's images; less where a method prunes inside."""
        cell = self._cells[spec]
        if not cell.vision_stage:
            spec, cell = UNPRUNED.spec, UNPRUNED
        if spec not in self._tower:
            from vtc.eval.cost.flops import vision_flops

            with pruned(self.sweep.model, cell) as model:
                self._tower[spec] = sum(vision_flops(model, first_row(self.sweep)))
        return self._tower[spec]

    def time_prefills(self, path: Path) -> None:
        """Measure the seconds of all cells in turns, once: a run that goes on decides by the same ones."""
        from vtc.eval.cost.interleaved_timing import measure_costs, steps_of

        known: Any = {}
        if path.is_file():
            with suppress(ValueError):
                known = parse_json(path.read_text(encoding="utf-8"))
        ours = isinstance(known, dict) and known.get("config") == self.store.config
        seconds = known.get("prefill_seconds", {}) if ours else {}
        if not all(spec in seconds for spec in self._cells):
            bar = self.progress.add_task("timing", total=sum(steps_of(self.sweep.cells, REPEATS).values()))
            costs = measure_costs(
                self.sweep.model, self.sweep.cells, first_row(self.sweep), REPEATS, lambda _: self.progress.advance(bar)
            )
            seconds = {spec: cost.prefill.median for spec, cost in costs.items() if cost.prefill}
            write_atomic(path, json.dumps({"config": self.store.config, "prefill_seconds": seconds}, indent=1) + "\n")
        self._seconds = {spec: float(seconds[spec]) for spec in self._cells}
