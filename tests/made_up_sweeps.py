"""Made-up sweeps of any size: what the statistics and the report are tested on without a model."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vtc.eval.cost.interleaved_timing import PrefillTime
from vtc.eval.cost.prefill_cost import Cost, Spread
from vtc.eval.statistics.cell_summary import CellSummary
from vtc.eval.statistics.intervals import Interval
from vtc.eval.statistics.rows_to_cells import summarise
from vtc.eval.sweep.results_store import ResultStore
from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell

DEPTH, TOKENS, TEXT = 32, 576, 60
VQA = np.array([0.0, 0.3, 0.6, 0.9, 1.0])

METHODS = {"random": 0.0, "good": 0.12, "same": 0.0, "bad": -0.15}
ABOUT: dict[str, Any] = {
    "command": "vtc bench --pruners 'random,good'", "model": "llava", "match": "keep", "seed": 0, "seconds": 12.5,
    "versions": {"vtc": "0.1.0", "torch": "2.9"}, "hardware": {"device": "cpu", "cpu": "a cpu", "cpus": 2},
    "data": {"name": "made-up", "version": "1.0", "fingerprint": "0123456789abcdef", "images": 120},
    "config_hash": "abc", "configuration": {"dtype": "float32"},
    "interval": {"level": 0.95, "method": "percentile bootstrap over images", "reps": 300},
}  # fmt: skip


@dataclass
class MadeUp:
    """A sweep's results."""

    tasks: TaskSet
    cells: list[Cell]
    store: ResultStore
    times: dict[str, PrefillTime]
    vision: dict[str, int]
    costs: dict[str, Cost]

    def summarise(self, **more: Any) -> list[CellSummary]:
        """Its summary, with the costs of what was timed."""
        found = summarise(self.store, self.tasks, self.cells, self.times, self.vision, **{"reps": 300, **more})
        for line in found:
            line.cost = self.costs.get(line.spec)
        return found

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Its result rows."""
        return list(self.store.rows.values())


def picture(seed: int) -> bytes:
    """A JPEG of soft blocks."""
    blocks = np.random.default_rng(seed).integers(40, 230, (6, 6, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(blocks).resize((336, 336), Image.Resampling.BICUBIC).save(data, "JPEG")
    return data.getvalue()


def task_set(
    tasks: Sequence[str], images: int, per_image: int = 1, metrics: Mapping[str, str] | None = None, kind: str = "image"
) -> TaskSet:
    """Each image has `per_image` questions of each task."""
    metrics = metrics or {}
    questions = [
        Question(
            f"q{i}-{task}-{k}",
            task,
            f"i{i}",
            f"what is thing {k} of {task} here?",
            "yes",
            metric=metrics.get(task, "exact"),
            group=f"i{i}",
            category="existence",
            kind=kind,
        )
        for i in range(images)
        for task in tasks
        for k in range(per_image)
    ]
    pictures = {f"i{i}": picture(i % 7) for i in range(images)}
    return TaskSet("made-up", "1.0", "0123456789abcdef", tuple(tasks), tuple(questions), pictures)


def cells_of(methods: Sequence[str], keeps: Sequence[int | float], seeds: int = 3) -> list[Cell]:
    """The unpruned cell, and each method at each keep; random with `seeds` seeds."""
    cells: list[Cell] = [UNPRUNED]
    for method in methods:
        for keep in keeps:
            for seed in range(seeds) if method == "random" else [None]:
                of_seed = "" if seed is None else f", seed={seed}"
                line = f"{method} keep={keep}"
                cells.append(Cell(method, keep, f"{method}(keep={keep}{of_seed})", seed=seed, line=line))
    return cells


def make_sweep(
    folder: Path, methods: Mapping[str, float], *, keeps: Sequence[int | float] = (0.5, 0.25, 0.1),
    tasks: Sequence[str] = ("pope", "gqa"), images: int = 60, per_image: int = 2, seeds: int = 3, flops: bool = True,
    timing: bool = True, layers: Mapping[str, int] | None = None, graded: Sequence[str] = (),
    unfinished: Sequence[str] = (), metrics: Mapping[str, str] | None = None, kind: str = "image", seed: int = 0,
) -> MadeUp:  # fmt: skip
    """Answers by chance.

    Parameters
    ----------
    methods : mapping
        What each adds to the probability of a right answer over random's, which falls with what is kept.
    layers : mapping, optional
        Decoder layers that a method leaves unpruned.
    graded : sequence
        Tasks whose scores are those of VQA accuracy.
    unfinished : sequence
        Methods that have answered a third of the questions.
    metrics, kind
        The metric of some tasks, and what the questions are about.
    """
    questions = task_set(tasks, images, per_image, metrics, kind)
    cells = cells_of(list(methods), keeps, seeds)
    rng = np.random.default_rng(seed)
    ids = questions.questions
    of_image = {f"i{i}": d for i, d in enumerate(rng.normal(size=images) * 0.12)}
    hard = rng.random(len(ids)) + np.array([of_image[q.image_id] for q in ids])
    rows, times, costs = [], {}, {}
    for cell in cells:
        share = 1.0 if cell.keep is None else (cell.keep if isinstance(cell.keep, float) else cell.keep / TOKENS)
        chance = 0.86 - (0.30 * (1 - share) ** 2) + (methods.get(cell.method, 0.0) if cell.keep is not None else 0.0)
        given = hard + 0.1 * rng.normal(size=len(ids))
        kept = round(share * TOKENS)
        full = (layers or {}).get(cell.method, 0)
        mean = (full * TOKENS + (DEPTH - full) * kept) / DEPTH
        for i, q in enumerate(ids):
            if cell.method in unfinished and i % 3:
                continue
            score = float(given[i] < chance)
            if q.task in graded:
                score = float(VQA[min(4, int(4.4 * np.clip(1.15 * chance - given[i] + 0.5, 0, 0.99)))])
            row: dict[str, Any] = {
                "cell": cell.spec, "method": cell.method, "keep": cell.keep, "question_id": q.question_id,
                "task": q.task, "image_id": q.image_id, "question": q.question, "answer": q.answer,
                "prediction": "yes" if score else "no", "score": score, "prompt_tokens": TOKENS + TEXT,
                "visual_total": TOKENS, "visual_kept": kept, "visual_mean_per_layer": round(mean, 3),
            }  # fmt: skip
            if flops:
                row |= {"lm_flops": 1e9 * (mean + TEXT), "lm_flops_unpruned": 1e9 * (TOKENS + TEXT)}
                row |= {"kv_bytes": 1e4 * (mean + TEXT), "kv_bytes_unpruned": 1e4 * (TOKENS + TEXT)}
            rows.append(row)
        if timing:
            seconds = 0.02 + 0.1 * (mean + TEXT) / (TOKENS + TEXT)
            times[cell.spec] = PrefillTime(seconds, 0.12, seconds - 0.02, 0.1, 5)
            lm, whole = (Spread(s, 0.9 * s, 1.2 * s) for s in (seconds - 0.02, seconds))
            vision, chosen, decode = (Spread(s, 0.95 * s, 1.2 * s) for s in (0.02, 0.002, 0.015))
            counted = (10**11, 10**9, int(1e9 * (mean + TEXT)), 10**8) if flops else (None,) * 4
            chosen = chosen if cell.keep is not None else None
            costs[cell.spec] = Cost(*counted, vision, chosen, lm, whole, decode, 2**30, "made up", 5)
    folder.mkdir(parents=True, exist_ok=True)
    with ResultStore(folder / "results.jsonl", "made-up") as store:
        store.append(rows)
    return MadeUp(questions, cells, store, times, {"unpruned": 10**11} if flops else {}, costs)


def one_cell(method: str, verdict: str = "", keep: float = 0.5, low: float = -0.05, **more: Any) -> CellSummary:
    """A cell of nothing but its numbers."""
    gap = Interval(low + 0.03, low, low + 0.06)
    given = {"n": 1000, "complete": True, "accuracy": {}, "mean": Interval(0.5, 0.4, 0.6), "difference": gap} | more
    return CellSummary(method=method, keep=keep, spec=f"{method} {keep}", flips=None, tokens_total=100.0,
                       tokens_asked=keep * 100, tokens_kept=keep * 100, tokens_per_layer=keep * 100, verdict=verdict,
                       **given)  # fmt: skip
