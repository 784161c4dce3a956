"""The main job: one sweep, from options to tables and files."""

from __future__ import annotations

import errno
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from .asked import load_asked
from .cells import DEFAULT_KEEPS, DEFAULT_PRUNERS, UNPRUNED, Cell
from .claims import Claims
from .console import make_console
from .cost import Cost, LMCost, lm_cost
from .emit import emit_cells, parse_shard
from .encode import core_of
from .features import DEFAULT_LIMIT as CACHE
from .loading import Loaded, config_hash, hardware, load_model, software
from .matching import RULES
from .plan import Plan, leave_out, plan_cells
from .plot import draw_pareto
from .progress import Estimator, make_progress
from .prompt import make_row, prompt_template
from .published import measured, published_table, recipe_json
from .recipes import Recipe
from .report import accuracy_table, cost_table, write_csv, write_json
from .report_html import kept_finder, write_report
from .runner import ENCODING, Sweep, run_sweep
from .skips import ON_ERROR, check_media
from .store import ResultStore
from .summary import REPS, CellSummary, summarise
from .tasks import TaskSet
from .timing import measure_costs, prefill_times
from .workers import Rank, run_workers, useful_workers

DEFAULT_LIMIT = 150
LONGEST = 16


@dataclass
class BenchOptions:
    """Options of a sweep; the command line's defaults.

    ``limit`` is the number of questions per task (None: ``DEFAULT_LIMIT`` with the bundled model on its own tasks, else
    all), ``timing`` the measured turns of the timings (0: none), ``share`` lets methods that don't read the question
    answer all questions of an image behind one prefill, ``workers`` is the number of processes (None: chosen). A
    ``recipe`` stands for pruners and keeps, and for the model where none is given. ``max_new_tokens`` and
    ``num_frames`` stand for what the tasks' definitions say. Methods that draw at random are run under ``seeds`` seeds
    from ``seed`` on, and ``random`` puts the random baseline into every sweep. ``only`` are the cells, by their specs,
    and ``shard`` the part "i/n" of the questions to answer; nothing else is measured then. ``emit`` is a file to write
    the cells' commands to, from ``arguments``, instead of running them.
    """

    pruners: Sequence[str] = DEFAULT_PRUNERS
    keeps: Sequence[int | float] = DEFAULT_KEEPS
    tasks: Sequence[str] | None = None
    model: str | None = None
    data: Path | None = None
    data_dir: Path | None = None
    include_path: Path | None = None
    on_error: str = "stop"
    limit: int | None = None
    output: Path | None = None
    seed: int = 0
    seeds: int = 3
    random: bool = True
    batch_size: int = 16
    max_new_tokens: int | None = None
    num_frames: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    timing: int = 5
    share: bool = True
    workers: int | None = 1
    cache_bytes: int = CACHE
    match: str = "keep"
    recipe: Recipe | None = None
    only: Sequence[str] | None = None
    shard: str | None = None
    emit: Path | None = None
    arguments: Sequence[str] | None = None

    @property
    def partial(self) -> bool:
        """Whether only answers are computed, for another run to put together."""
        return self.only is not None or self.shard is not None


def longest_answers(options: BenchOptions, tasks: TaskSet) -> dict[str, int]:
    """Tokens that an answer may have, by task: as asked, as the task's definition says, else ``LONGEST``."""
    said = {t: (i.max_new_tokens if (i := tasks.info.get(t)) else None) for t in tasks.tasks}
    return {t: options.max_new_tokens or n or LONGEST for t, n in said.items()}


def configuration(options: BenchOptions, loaded: Loaded, tasks: TaskSet) -> dict[str, Any]:
    """Everything that an answer depends on besides its cell (the method and all its parameters) and question."""
    parameter = next(loaded.model.parameters())
    versions = software()
    longest = longest_answers(options, tasks)
    frames = {t: options.num_frames or (i.num_frames if (i := tasks.info.get(t)) else None) for t in tasks.tasks}
    return {
        "model": loaded.identity, "data": tasks.fingerprint, "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type, "attention": core_of(loaded.model).config._attn_implementation,
        "prompt": prompt_template(loaded.processor),
        "generation": {"do_sample": False, "num_beams": 1, "max_new_tokens": longest},
        "num_frames": {t: n for t, n in frames.items() if n},
        "vtc": versions["vtc"], "torch": versions["torch"], "transformers": versions["transformers"],
    }  # fmt: skip


def _folder(options: BenchOptions, loaded: Loaded, tasks: TaskSet, config: str) -> Path:
    """Where results go; the default name is stable, so that the same command resumes."""
    model = loaded.name.rstrip("/").split("/")[-1]
    data = tasks.name.replace("/", "_").replace(":", "_")[:60]
    return options.output or Path("vtc-bench") / "-".join(dict.fromkeys((model, data, config[:8])))


def _prepare(folder: Path) -> list[Path]:
    """Make `folder` and check that it can be written; returns the folders that were made."""
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".vtc-probe-{time.time_ns()}"
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


def _measure_cost(sweep: Sweep, repeats: int, progress: Progress, store: ResultStore) -> dict[str, Cost]:
    """Times and FLOPs of each line's first cell, on the first question's prompt."""
    from .flops import LMFlops, count_flops

    lines = {cell.line or cell.spec: cell for cell in reversed(sweep.cells)}
    cells = [cell for cell in sweep.cells if lines[cell.line or cell.spec] is cell]
    first = sweep.tasks.questions[0]
    row = make_row(sweep.loaded.processor, sweep.model.config, sweep.tasks.visuals(first, sweep.frames), first)
    costs: dict[str, Cost] = {cell.spec: Cost() for cell in cells}
    if repeats:
        bar = progress.add_task("timing", total=len(cells) * (repeats + 1))
        costs = measure_costs(sweep.model, cells, row, repeats, lambda: progress.advance(bar))
    if sweep.cost is None:
        return costs
    lm, plain = LMFlops(sweep.model), None
    for cell in cells:
        known = store.rows.get((cell.spec, first.question_id))
        per_layer = known.get("visual_per_layer") if known else None
        if per_layer is None:
            continue
        lengths = [len(row.ids) - row.visual + n for n in per_layer]
        found = count_flops(sweep.model, cell, row, lengths, lm, None if cell.vision_stage else plain)
        plain = plain if cell.vision_stage else found
        costs[cell.spec] = replace(
            costs[cell.spec], vision_flops=found.vision, projector_flops=found.projector, lm_flops=found.lm,
            head_flops=found.head,
        )  # fmt: skip
    return costs


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


def _check(options: BenchOptions) -> tuple[int, int]:
    """Check what needs no model; returns the part of the questions, 1 of 1 for all."""
    if options.match not in RULES:
        raise ValueError(f"--match {options.match!r} is unknown: allowed are {', '.join(RULES)}")
    if options.on_error not in ON_ERROR:
        raise ValueError(f"--on-error {options.on_error!r} is unknown: allowed are {', '.join(ON_ERROR)}")
    if options.seeds < 1:
        raise ValueError(f"--seeds {options.seeds} is out of range: at least 1")
    if options.emit is not None and not options.emit.resolve().parent.is_dir():
        raise ValueError(f"--emit: no such folder: {options.emit.resolve().parent}")
    return parse_shard(options.shard) if options.shard else (1, 1)


def _plan(options: BenchOptions) -> tuple[Plan, dict[str, Cell]]:
    """The cells that are asked for, and those of a recipe by their labels."""
    seeds = range(options.seed, options.seed + options.seeds)
    if options.recipe is None:
        return plan_cells(options.pruners, options.keeps, seeds, options.random), {}
    asked = options.recipe.bench_cells(options.seed or None)
    keeps = [cell.keep for cell in asked.values() if cell.keep is not None]
    base = plan_cells(["random"], keeps, seeds).cells if options.random else [UNPRUNED]
    cells = {cell.spec: cell for cell in [*base, *asked.values()]}
    return Plan(list(cells.values())), asked


def _chosen(plan: Plan, only: Sequence[str] | None) -> Plan:
    """The plan's cells of these specs."""
    if only is None:
        return plan
    of = {cell.spec: cell for cell in plan.cells}
    for spec in only:
        if spec not in of:
            raise ValueError(f"--cell {spec!r} is not of this sweep, which has: {'; '.join(of)}")
    return replace(plan, cells=[of[spec] for spec in dict.fromkeys(only)])


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _answer(sweep: Sweep, store: ResultStore, options: BenchOptions, rank: Rank, progress: Progress) -> None:
    """Compute what is missing, with as many processes as it is worth."""
    workers = 1 if rank.world > 1 else useful_workers(sweep, options.workers)
    parts = {cell.spec: len(sweep.tasks.questions) for cell in sweep.cells}
    if workers == 1:  # of its workers it sees the answers only
        parts[ENCODING] = len(sweep.tasks.groups())
    estimator = Estimator(parts)
    bar = progress.add_task("answering", total=sweep.total(), estimator=estimator)

    def advance(cell: str, count: int, found: bool) -> None:
        (estimator.found if found else estimator.done)(cell, count)
        progress.advance(bar, 0 if cell == ENCODING else count)

    if workers > 1:
        run_workers(sweep, store, workers, (options.model, options.device, options.dtype), advance)
        return
    with Claims(store.path.parent) as claims:
        store.open()
        run_sweep(sweep, store, advance, claims, wait=rank.rank == 0 and not options.partial)


def run_bench(options: BenchOptions, console: Console | None = None) -> list[CellSummary]:
    """Run (or resume) a sweep, show its tables and write its files.

    Returns
    -------
    list of CellSummary
        Empty where only a part was asked for, and in all but the first process of a launcher.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        For an option that does not work; the message is one line.
    KeyboardInterrupt
        Passed on; finished results stay in the output folder, and the same command goes on from there.
    """
    rank = Rank.from_environment()
    console = console or make_console()
    console.quiet = console.quiet or rank.rank > 0
    started = time.time()
    part, parts = _check(options)
    everything, names = load_asked(
        options.tasks, options.data, options.data_dir, options.on_error, options.include_path
    )
    recipe = options.recipe
    own = options.model is None and everything.name == "bundled" and recipe is None
    tasks = everything.subset(names, DEFAULT_LIMIT if options.limit is None and own else options.limit)
    tasks = check_media(tasks, options.on_error)
    if recipe:
        options = replace(options, model=options.model or recipe.model)
    plan, asked = _plan(options)
    if rank.world > 1:
        options = replace(options, device=rank.device(options.device))
    loaded = load_model(options.model, options.device, options.dtype)
    described = configuration(options, loaded, everything)
    config = config_hash(described)
    folder = _folder(options, loaded, everything, config)
    plan = _chosen(leave_out(plan, loaded, tasks), options.only)
    cells = plan.cells
    if options.emit is not None:
        emit_cells(options.emit, cells, options.arguments or sys.argv[1:], folder.resolve())
        _say(console, f"{len(cells)} cells; written: {options.emit}")
        return []
    made = _prepare(folder)
    if tasks.skipped:
        _say(console, f"{len(tasks.skipped)} rows or questions skipped:", *tasks.skipped)
    _say(console, _stated(tasks, everything, options.seed))
    _say(console, f"{len(cells)} cells, model {loaded.name}; results in {folder}", *plan.remarks())
    if recipe and options.model != recipe.model:
        _say(console, f"the recipe's model is {recipe.model}")
    try:
        cost: LMCost | None = lm_cost(loaded.model)
    except NotImplementedError as e:
        cost = None
        console.print(f"{e}: no FLOPs columns", style="yellow")
    asked_of = [q for group in tasks.groups()[part - 1 :: parts] for q in group]
    if not asked_of:
        raise ValueError(f"--shard {options.shard}: there are only {len(tasks.groups())} images")
    sweep = Sweep(
        loaded, tasks.part(asked_of) if parts > 1 else tasks, cells, cost, options.batch_size, LONGEST, options.share,
        longest_answers(options, tasks), options.num_frames, options.cache_bytes, options.shard,
    )  # fmt: skip
    try:
        with ResultStore(folder / "results.jsonl", config) as store, make_progress(console) as progress:
            _answer(sweep, store, options, rank, progress)
            if options.partial or rank.rank > 0:
                done = sum((c.spec, q.question_id) in store for c in cells for q in sweep.tasks.questions)
                _say(console, f"{done} of {sweep.total()} answers of this part are in {folder}")
                return []
            costs = _measure_cost(sweep, options.timing, progress, store)
        vision = {spec: n for spec, c in costs.items() if (n := c.tower_flops) is not None}
        summary = summarise(
            store, tasks, cells, prefill_times(costs), vision if cost else None, seed=options.seed, match=options.match
        )
        for line in summary:
            line.cost = costs.get(line.spec)
        about = {
            "configuration": described, "config_hash": config, "command": shlex.join(["vtc", *sys.argv[1:]]),
            "model": loaded.name, "seed": options.seed, "seeds": options.seeds, "match": options.match,
            "versions": software(), "hardware": hardware(loaded.model),
            "data": {
                "name": tasks.name, "version": tasks.version, "fingerprint": tasks.fingerprint, "limit": tasks.limit,
                "questions": tasks.counts, "images": len({q.image_id for q in tasks.questions}),
                "skipped": list(tasks.skipped),
            },
            "interval": {"level": 0.95, "method": "percentile bootstrap over images", "reps": REPS},
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
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
        write_report(folder, summary, about, tasks, store.rows.values(), kept_finder(loaded, cells, tasks))
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
    _say(
        console,
        f"{time.time() - started:.0f} s. Written: {folder}/results.jsonl, summary.csv, summary.json, report.html, "
        "report.md, pareto.png",
    )
    return summary
