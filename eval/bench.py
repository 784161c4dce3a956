"""The main job: one sweep, from options to tables and files."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from rich.console import Console

from vtc.eval.files.output_folder import writing_to
from vtc.eval.reports.measured_beside_published import measured, published_table, recipe_json
from vtc.eval.reports.screen_tables import print_tables
from vtc.eval.reports.sweep_folder import FILES, write_files
from vtc.eval.reports.what_a_sweep_will_do import introduce
from vtc.eval.statistics.cell_summary import CellSummary
from vtc.eval.statistics.rows_to_cells import summarise_sweep
from vtc.eval.sweep.asked_questions import asked_questions
from vtc.eval.sweep.options import BenchOptions, check_options
from vtc.eval.sweep.shell_commands import emit_cells
from vtc.eval.sweep.sweep_job import Job
from vtc.eval.sweep.worker_processes import Rank
from vtc.eval.terminal.console import make_console, say, say_found, say_replaced
from vtc.eval.terminal.progress_bars_and_eta import make_progress
from vtc.eval.vlm.loading import load_model


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
    check_options(options)
    recipe = options.recipe
    if recipe:
        options = replace(options, model=options.model or recipe.model)
    everything, tasks = asked_questions(options)
    if rank.world > 1:
        options = replace(options, device=rank.device(options.device))
    job = Job.of(options, lambda: load_model(*options.source), everything, tasks, console)
    if options.emit is not None:
        emit_cells(options.emit, job.plan.cells, options.arguments or sys.argv[1:], job.folder.resolve())
        say(console, f"{len(job.plan.cells)} cells; written: {options.emit}")
        return []
    with writing_to(job.folder):
        introduce(console, options, tasks, everything, job.plan, job.loaded.name, job.folder)
        say_replaced(console, job.folder / "summary.json", options.arguments or sys.argv[1:])
        with job.store() as store, make_progress(console) as progress:
            say_found(console, job.found(store), job.sweep.total())
            estimator = job.answer(store, progress, rank)
            if options.partial or rank.rank > 0:
                say(console, f"{job.found(store)} of {job.sweep.total()} answers of this part are in {job.folder}")
                return []
            costs = job.costs(store, progress, estimator)
            second = job.second(console, progress)
            summary = summarise_sweep(store, job.sweep, costs, options.seed, options.match, second)
        about = job.about(time.time() - started)
        found = measured(recipe, job.asked, summary, tasks) if recipe else {}
        if recipe:
            about["recipe"] = recipe_json(recipe, found)
        write_files(job.folder, summary, about, store, job.loaded, tasks, job.plan.cells)
    print_tables(console, summary, tasks, options.match)
    if recipe:
        console.print(published_table(recipe, found, tasks))
    say(console, f"{time.time() - started:.0f} s. Written: {job.folder}/results.jsonl, {', '.join(FILES)}")
    return summary
