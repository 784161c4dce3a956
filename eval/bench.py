"""The main job: one sweep, from options to tables and files."""

from __future__ import annotations

import errno
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .bundled import bundled_data
from .cells import DEFAULT_KEEPS, DEFAULT_PRUNERS, UNPRUNED, Cell
from .console import make_console
from .cost import LMCost, lm_cost, vision_flops
from .loading import Loaded, config_hash, hardware, load_model, software
from .plan import Plan, leave_out, plan_cells
from .plot import draw_pareto
from .prompt import make_row
from .published import measured, published_table, recipe_json
from .recipes import Recipe
from .report import accuracy_table, cost_table, write_csv, write_json
from .runner import Sweep, pruned, run_sweep
from .store import ResultStore
from .summary import REPS, CellSummary, summarise
from .tasks import TaskSet, load_tasks
from .timing import PrefillTime, prefill_time
from .workers import run_workers, useful_workers

DEFAULT_LIMIT = 150


@dataclass
class BenchOptions:
    """Options of a sweep; the command line's defaults.

    ``limit`` is the number of questions per task (None: ``DEFAULT_LIMIT`` with the bundled model on its own tasks, else
    all), ``timing`` the measured turns of the prefill timing (0: none), ``share`` lets methods that don't read the
    question answer all questions of an image behind one prefill, ``workers`` is the number of processes (None: chosen).
    A ``recipe`` stands for pruners and keeps, and for the model where none is given.
    """

    pruners: Sequence[str] = DEFAULT_PRUNERS
    keeps: Sequence[int | float] = DEFAULT_KEEPS
    tasks: Sequence[str] | None = None
    model: str | None = None
    data: Path | None = None
    limit: int | None = None
    output: Path | None = None
    seed: int = 0
    batch_size: int = 16
    max_new_tokens: int = 16
    device: str = "auto"
    dtype: str = "auto"
    timing: int = 5
    share: bool = True
    workers: int | None = 1
    recipe: Recipe | None = None


def configuration(options: BenchOptions, loaded: Loaded, tasks: TaskSet) -> dict[str, Any]:
    """Everything that an answer depends on besides its cell and question."""
    parameter = next(loaded.model.parameters())
    versions = software()
    return {
        "model": loaded.identity, "data": tasks.fingerprint, "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type, "max_new_tokens": options.max_new_tokens,
        "vtc": versions["vtc"], "torch": versions["torch"], "transformers": versions["transformers"],
    }  # fmt: skip


def _folder(options: BenchOptions, loaded: Loaded, tasks: TaskSet, config: str) -> Path:
    """Where results go; the default name is stable, so that the same command resumes."""
    model = loaded.name.rstrip("/").split("/")[-1]
    return options.output or Path("vtc-bench") / "-".join(dict.fromkeys((model, tasks.name, config[:8])))


def _prepare(folder: Path) -> list[Path]:
    """Make `folder` and check that it can be written; returns the folders that were made."""
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".vtc-probe"
        probe.write_bytes(b"vtc")
        probe.unlink()
    except OSError as e:
        remove_empty(made)
        raise ValueError(f"can't write to the output folder {folder}: {e.strerror or e}") from None
    return made


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of `folders` (innermost first) that hold nothing."""
    for path in folders:
        try:
            path.rmdir()
        except OSError:
            return


def _measure_cost(
    loaded: Loaded, tasks: TaskSet, cells: Sequence[Cell], repeats: int, progress: Progress
) -> tuple[dict[str, PrefillTime], dict[str, int]]:
    """Prefill times of all cells and the tower's FLOPs, both on the first question's prompt."""
    first = tasks.questions[0]
    row = make_row(loaded.processor, loaded.model.config, tasks.image(first.image_id), first)
    vision = {}
    for cell in (c for c in cells if c is UNPRUNED or c.vision_stage):
        with pruned(loaded.model, cell) as model:
            vision[cell.spec] = vision_flops(model, row)
    times: dict[str, PrefillTime] = {}
    if repeats:
        bar = progress.add_task("timing", total=len(cells))
        for cell in cells:
            times[cell.spec] = prefill_time(loaded.model, cell, row, UNPRUNED, repeats)
            progress.advance(bar)
    return times, vision


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=console)


def _stated(tasks: TaskSet, total: TaskSet, seed: int) -> str:
    parts = ", ".join(f"{task} {n}" for task, n in tasks.counts.items())
    fixed = (
        f"a fixed choice from {len(total.questions)}"
        if len(tasks.questions) < len(total.questions)
        else "all there are"
    )
    images = len({q.image_id for q in tasks.questions})
    return (
        f"{tasks.name} {tasks.version}: {len(tasks.questions)} questions on {images} images ({fixed}; {parts}); "
        f"every cell answers the same ones; intervals: 95%, bootstrap over images, seed {seed}"
    )


def run_bench(options: BenchOptions, console: Console | None = None) -> list[CellSummary]:
    """Run (or resume) a sweep, show its tables and write its files.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        For an option that does not work; the message is one line.
    KeyboardInterrupt
        Passed on; finished results stay in the output folder, and the same command goes on from there.
    """
    console = console or make_console()
    started = time.time()
    everything = load_tasks(options.data or bundled_data())
    if options.data is None:
        everything = replace(everything, name="bundled")
    recipe = options.recipe
    own = options.model is None and options.data is None and recipe is None
    tasks = everything.subset(options.tasks, DEFAULT_LIMIT if options.limit is None and own else options.limit)
    asked = recipe.bench_cells(options.seed or None) if recipe else {}
    if recipe:
        options = replace(options, model=options.model or recipe.model)
        plan = Plan([UNPRUNED, *asked.values()])
    else:
        plan = plan_cells(options.pruners, options.keeps, options.seed or None)
    loaded = load_model(options.model, options.device, options.dtype)
    config = configuration(options, loaded, tasks)
    folder = _folder(options, loaded, everything, config_hash(config))
    plan = leave_out(plan, loaded, tasks)
    cells = plan.cells
    made = _prepare(folder)
    console.print(_stated(tasks, everything, options.seed), highlight=False)
    console.print(f"{len(cells)} cells, model {loaded.name}; results in {folder}", highlight=False, soft_wrap=True)
    for line in plan.remarks():
        console.print(line, highlight=False, soft_wrap=True)
    if recipe and options.model != recipe.model:
        console.print(f"the recipe's model is {recipe.model}", highlight=False, soft_wrap=True)
    try:
        cost: LMCost | None = lm_cost(loaded.model)
    except NotImplementedError as e:
        cost = None
        console.print(f"{e}: no FLOPs columns", style="yellow")
    sweep = Sweep(loaded, tasks, cells, cost, options.batch_size, options.max_new_tokens, options.share)
    try:
        with ResultStore(folder / "results.jsonl", config_hash(config)) as store, _progress(console) as progress:
            store.open()
            bar = progress.add_task("answering", total=sweep.total())
            workers = useful_workers(sweep, options.workers)
            if workers > 1:
                source = (options.model, options.device, options.dtype)
                run_workers(sweep, store, workers, source, lambda n: progress.advance(bar, n))
            else:
                run_sweep(sweep, store, lambda n: progress.advance(bar, n))
            times, vision = _measure_cost(loaded, tasks, cells, options.timing, progress)
        summary = summarise(store, tasks, cells, times, vision if cost else None, seed=options.seed)
        about = {
            "configuration": config, "config_hash": config_hash(config), "command": shlex.join(["vtc", *sys.argv[1:]]),
            "model": loaded.name, "seed": options.seed, "versions": software(), "hardware": hardware(loaded.model),
            "data": {
                "name": tasks.name, "version": tasks.version, "fingerprint": tasks.fingerprint, "limit": tasks.limit,
                "questions": tasks.counts, "images": len({q.image_id for q in tasks.questions}),
            },
            "interval": {"level": 0.95, "method": "percentile bootstrap over images", "reps": REPS},
            "seconds": round(time.time() - started, 1),
        }  # fmt: skip
        found = measured(recipe, asked, summary, tasks) if recipe else {}
        if recipe:
            about["recipe"] = recipe_json(recipe, found)
        if plan.left_out:
            about["left_out"] = plan.left_out
        write_csv(folder / "summary.csv", summary)
        write_json(folder / "summary.json", summary, about)
        title = (
            f"{loaded.name}, {tasks.name} {tasks.version}, {len(tasks.questions)} questions in {len(tasks.tasks)} tasks"
        )
        draw_pareto(summary, folder / "pareto.png", title)
    except OSError as e:
        what = "the disk is full" if e.errno in (errno.ENOSPC, errno.EDQUOT) else (e.strerror or str(e))
        raise ValueError(
            f"can't write to {folder}: {what}; what was finished is kept, the same command resumes"
        ) from None
    finally:
        remove_empty(made)
    console.print(accuracy_table(summary, tasks))
    console.print(cost_table(summary))
    if recipe:
        console.print(published_table(recipe, found, tasks))
    console.print(
        f"{time.time() - started:.0f} s. Written: {folder}/results.jsonl, summary.csv, summary.json, pareto.png",
        highlight=False,
        soft_wrap=True,
    )
    return summary
