"""The main job: one sweep, from options to tables and files."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from rich.console import Console
from rich.progress import Progress

from .asked import a_part, asked_questions
from .baselines import add_baselines
from .configuration import configuration, files_read, record
from .console import make_console, say, say_found
from .cost import LMCost, lm_cost
from .costs import expect_timing, sweep_costs
from .emit import emit_cells
from .introduction import introduce
from .loading import Loaded, config_hash, load_model
from .options import LONGEST, BenchOptions, check_options, longest_answers
from .outputs import FILES, results_folder, write_files, writing_to
from .plan import chosen_cells, leave_out, plan_sweep
from .progress import Estimator, make_progress
from .published import measured, published_table, recipe_json
from .runner import ENCODING, Sweep, missing
from .store import AnswerStore, ResultStore
from .summary import CellSummary, summarise
from .tables import print_tables
from .timing import prefill_times
from .workers import Rank, compute, useful_workers


def _answer(
    sweep: Sweep, store: ResultStore, options: BenchOptions, rank: Rank, progress: Progress
) -> Estimator:  # fmt: skip
    """Compute what is missing, with as many processes as it is worth; returns what knows how long the rest takes."""
    workers = 1 if rank.world > 1 else useful_workers(sweep, options.workers)
    parts = {cell.spec: len(sweep.tasks.questions) for cell in sweep.cells}
    if workers == 1:  # of its workers it sees the answers only
        parts[ENCODING] = len(sweep.tasks.groups())
    wait = rank.rank == 0 and not options.partial
    estimator = Estimator(parts)
    if wait and missing(sweep, store):
        expect_timing(sweep, options.timing, estimator)
    compute(sweep, store, workers, options.source, progress, estimator, wait=wait)
    return estimator


def _finish(
    sweep: Sweep, store: ResultStore, options: BenchOptions, progress: Progress, estimator: Estimator
) -> list[CellSummary]:
    """Measure the costs and put everything together."""
    costs = sweep_costs(sweep, options.timing, progress, store, estimator)
    vision = {spec: n for spec, c in costs.items() if (n := c.tower_flops) is not None}
    summary = summarise(
        store, sweep.tasks, sweep.cells, prefill_times(costs), vision if sweep.cost else None, seed=options.seed,
        match=options.match,
    )  # fmt: skip
    for line in summary:
        line.cost = costs.get(line.spec)
    return summary


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
    part, parts = check_options(options)
    recipe = options.recipe
    if recipe:
        options = replace(options, model=options.model or recipe.model)
    everything, tasks = asked_questions(options)
    plan, asked = plan_sweep(options)
    if rank.world > 1:
        options = replace(options, device=rank.device(options.device))
    loaded = load_model(*options.source)
    described = {**configuration(options, loaded, everything), **files_read(plan.cells)}
    folder = results_folder(options.output, loaded, everything, config_hash(described))
    plan = leave_out(plan, loaded, tasks)
    if options.random and not {*(options.only or ["all"])} <= {cell.spec for cell in plan.cells}:
        plan = add_baselines(plan, loaded, tasks, options.every_seed)
    plan = chosen_cells(plan, options.only)
    if options.emit is not None:
        emit_cells(options.emit, plan.cells, options.arguments or sys.argv[1:], folder.resolve())
        say(console, f"{len(plan.cells)} cells; written: {options.emit}")
        return []
    sweep = Sweep(
        loaded, a_part(tasks, part, parts), plan.cells, _cost(loaded, console), options.batch_size,
        LONGEST, options.share, longest_answers(options, tasks), options.num_frames, options.cache_bytes, options.shard,
    )  # fmt: skip
    with writing_to(folder):
        introduce(console, options, tasks, everything, plan, loaded.name, folder)
        with AnswerStore(folder / "results.jsonl", config_hash(described)) as store, make_progress(console) as progress:
            say_found(console, sweep.total() - missing(sweep, store), sweep.total())
            estimator = _answer(sweep, store, options, rank, progress)
            if options.partial or rank.rank > 0:
                done = sweep.total() - missing(sweep, store)
                say(console, f"{done} of {sweep.total()} answers of this part are in {folder}")
                return []
            summary = _finish(sweep, store, options, progress, estimator)
        about = record(options, loaded, tasks, described, time.time() - started)
        found = measured(recipe, asked, summary, tasks) if recipe else {}
        if recipe:
            about["recipe"] = recipe_json(recipe, found)
        if plan.left_out:
            about["left_out"] = plan.left_out
        write_files(folder, summary, about, store, loaded, tasks, plan.cells)
    print_tables(console, summary, tasks, options.match)
    if recipe:
        console.print(published_table(recipe, found, tasks))
    say(console, f"{time.time() - started:.0f} s. Written: {folder}/results.jsonl, {', '.join(FILES)}")
    return summary


def _cost(loaded: Loaded, console: Console) -> LMCost | None:
    try:
        return lm_cost(loaded.model)
    except NotImplementedError as e:
        console.print(f"{e}: no FLOPs columns", style="yellow")
        return None
