"""The job of a classifier: ``vtc bench --model timm:NAME --data FOLDER``, from options to tables and files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from vtc.eval.cost.interleaved_timing import TIMING
from vtc.eval.cost.prefill_cost import Cost
from vtc.eval.files.output_folder import writing_to
from vtc.eval.reports.html import write_report
from vtc.eval.reports.pareto_plot import draw_pareto
from vtc.eval.reports.summary_files import write_csv, write_json
from vtc.eval.reports.sweep_folder import FILES
from vtc.eval.reports.what_a_sweep_will_do import NAMED
from vtc.eval.statistics.cell_summary import CellSummary
from vtc.eval.statistics.rows_to_cells import summarise
from vtc.eval.sweep.asked_questions import check_media
from vtc.eval.sweep.fingerprint import KEYED, record, subject
from vtc.eval.sweep.options import RULES
from vtc.eval.sweep.plan import Plan
from vtc.eval.sweep.results_store import AnswerStore, ResultStore, results_folder
from vtc.eval.tasks.questions import TaskSet
from vtc.eval.tasks.reading.unusable_rows import ON_ERROR
from vtc.eval.terminal.console import make_console, say, say_found
from vtc.eval.terminal.option_checks import check_choice
from vtc.eval.terminal.progress_bars_and_eta import Estimator, make_progress
from vtc.eval.vlm.loading import config_hash, software
from vtc.eval.vlm.pruning_settings import first_of_lines
from vtc.pruners import list_pruners

from .class_labels import place_labels
from .classifier import TEMPLATES, Classifier, load_classifier, zero_shot
from .classifier_costs import WARM_UP, batch_times, measure_costs
from .classifier_sweep import ClassifySweep, run_classify
from .classifier_tables import print_tables
from .kept_patches_for_report import kept_finder
from .pictures import class_names, load_pictures, read_mapping
from .plan import DEFAULT_KEEPS, DEFAULT_METHODS, plan_cells
from .sources import check_source

BATCH = 64


@dataclass
class ClassifyOptions:
    """Options of a classifier's sweep; the command line's defaults.

    ``pruners`` None are the default methods, ``limit`` is a number of pictures (None: all), ``timing`` the measured
    turns (0: none). The others are as for ``vtc.eval.sweep.options.BenchOptions``.
    """

    model: str
    data: Path | None = None
    pruners: Sequence[str] | None = None
    keeps: Sequence[int | float] = DEFAULT_KEEPS
    limit: int | None = None
    output: Path | None = None
    on_error: str = "stop"
    seed: int = 0
    seeds: int = 3
    random: bool = True
    match: str = "keep"
    batch_size: int = BATCH
    device: str = "auto"
    dtype: str = "auto"
    timing: int = 5
    arguments: Sequence[str] | None = None

    @property
    def methods(self) -> list[str]:
        """What was asked for, else the default methods that are there."""
        return list(self.pruners or [m for m in DEFAULT_METHODS if m in list_pruners()])


def check_options(options: ClassifyOptions) -> Path:
    """Check what needs no model; returns the data's folder.

    Raises
    ------
    ValueError
        Naming the option, its value and what is allowed.
    """
    check_choice("--match", options.match, RULES)
    check_choice("--on-error", options.on_error, ON_ERROR)
    return check_source(options.model, options.data)


def load_both(options: ClassifyOptions) -> tuple[Classifier, TaskSet, dict[str, int], str]:
    """The classifier, all labelled pictures, the output of each class, and by what it was found."""
    folder = check_options(options)
    everything = load_pictures(folder)
    classes, said = class_names(everything), read_mapping(folder)
    classifier = load_classifier(options.model, options.device, options.dtype)
    if options.model.startswith("open_clip:"):
        spoken = [name.replace("_", " ") if isinstance(s := said.get(name), int | None) else s for name in classes]
        places = {name: i for i, name in enumerate(classes)}
        return zero_shot(classifier, spoken), everything, places, f"prompts such as {TEMPLATES[0].format(spoken[0])!r}"
    places, how = place_labels(classes, classifier.outputs, classifier.names, said, str(folder))
    return classifier, everything, places, how


def describe(classifier: Classifier, tasks: TaskSet, places: dict[str, int]) -> dict[str, Any]:
    """Everything that an answer depends on besides its cell and picture; see ``vtc.eval.sweep.fingerprint``."""
    import importlib.metadata

    versions = software()
    package = {"timm": "timm", "open_clip": "open_clip_torch"}[classifier.name.partition(":")[0]]
    return {
        **subject(classifier, tasks),
        **classifier.described,
        "classes": places,
        package: importlib.metadata.version(package),
        **{name: versions[name] for name in KEYED if name != "transformers"},
    }


def _measure(sweep: ClassifySweep, timing: int, progress: Progress, estimator: Estimator) -> dict[str, Cost]:
    cells = first_of_lines(sweep.cells)
    asked = sweep.tasks.questions[: sweep.batch_size]
    images = sweep.classifier.batch([sweep.tasks.image(q.image_id) for q in asked])
    bar = progress.add_task("timing", total=estimator.left[TIMING], visible=bool(timing), estimator=estimator)

    def advance() -> None:
        estimator.done(TIMING, 1)
        progress.advance(bar)

    return measure_costs(sweep.classifier, cells, images, timing, advance, estimator.skip)


def _estimator(sweep: ClassifySweep, timing: int) -> Estimator:
    """Of the time left: a turn of the timing is a batch without its pictures' decoding, so about a batch."""
    total = len(sweep.tasks.questions)
    turns = len(first_of_lines(sweep.cells)) * (timing + WARM_UP) if timing else 0
    parts = {cell.spec: total for cell in sweep.cells} | {TIMING: turns}
    return Estimator(parts, alone=[TIMING], sizes={TIMING: min(sweep.batch_size, total)})


def _answer(sweep: ClassifySweep, store: ResultStore, progress: Progress, estimator: Estimator) -> None:
    total = len(sweep.tasks.questions)
    bar = progress.add_task("classifying", total=total * len(sweep.cells), estimator=estimator)

    def advance(cell: str, count: int, found: bool) -> None:
        (estimator.found if found else estimator.done)(cell, count)
        progress.advance(bar, count)

    store.open()
    run_classify(sweep, store, advance)


def summarise_costs(
    sweep: ClassifySweep, store: ResultStore, costs: dict[str, Cost], seed: int, match: str
) -> list[CellSummary]:
    """The summaries with what was measured."""
    flops = {spec: cost.vision_flops for spec, cost in costs.items() if cost.vision_flops is not None}
    found = summarise(store, sweep.tasks, sweep.cells, batch_times(costs), flops, seed=seed, match=match)
    for line in found:
        line.cost = costs.get(line.spec)
    return found


def _introduce(
    console: Console,
    sweep: ClassifySweep,
    everything: TaskSet,
    plan: Plan,
    how: str,
    folder: Path,
) -> None:
    skipped = sweep.tasks.skipped
    if skipped:
        more = [f"and {len(skipped) - NAMED} more, all in summary.json"] if len(skipped) > NAMED else []
        say(console, f"{len(skipped)} pictures skipped:", *skipped[:NAMED], *more)
    asked, total = len(sweep.tasks.questions), len(everything.questions)
    some = "all there are" if asked == total else f"a fixed choice from {total}"
    classes = f"{len(sweep.places)} classes matched to {sweep.classifier.outputs} outputs by {how}"
    say(console, f"{everything.name}: {asked} pictures ({some}), {classes}")
    say(console, f"{len(plan.cells)} cells, model {sweep.classifier.name}; results in {folder}", *plan.remarks())


def _about(
    options: ClassifyOptions, sweep: ClassifySweep, plan: Plan, described: dict[str, Any], seconds: float
) -> dict[str, Any]:
    size = min(options.batch_size, len(sweep.tasks.questions))
    found = record(options, sweep.classifier, sweep.tasks, described, seconds)
    found |= {"kind": "classifier", "batch_size": size}
    return found | ({"left_out": plan.left_out} if plan.left_out else {})


def run_bench(options: ClassifyOptions, console: Console | None = None) -> list[CellSummary]:
    """Run (or resume) a sweep, show its tables and write its files.

    Raises
    ------
    ValueError, TypeError, NotImplementedError, FileNotFoundError
        For an option, a picture or a method that does not work; the message is one line.
    KeyboardInterrupt
        Passed on; finished results stay in the output folder, and the same command goes on from there.
    """
    console, started = console or make_console(), time.time()
    classifier, everything, places, how = load_both(options)
    tasks = check_media(everything.subset(None, options.limit), options.on_error)
    seeds = range(options.seed, options.seed + options.seeds)
    plan = plan_cells(classifier.model, options.methods, options.keeps, seeds, options.random)
    sweep = ClassifySweep(classifier, tasks, places, plan.cells, options.batch_size)
    described = describe(classifier, everything, places)
    folder = results_folder(options.output, classifier, everything, config_hash(described))
    with writing_to(folder):
        _introduce(console, sweep, everything, plan, how, folder)
        with AnswerStore(folder / "results.jsonl", config_hash(described)) as store, make_progress(console) as progress:
            found = sum((cell.spec, q.question_id) in store for cell in sweep.cells for q in tasks.questions)
            say_found(console, found, len(sweep.cells) * len(tasks.questions))
            estimator = _estimator(sweep, options.timing)
            _answer(sweep, store, progress, estimator)
            costs = _measure(sweep, options.timing, progress, estimator)
            summary = summarise_costs(sweep, store, costs, options.seed, options.match)
        about = _about(options, sweep, plan, described, time.time() - started)
        write_csv(folder / "summary.csv", summary)
        write_json(folder / "summary.json", summary, about)
        draw_pareto(summary, folder / "pareto.png", f"{classifier.name}, {tasks.name}, {len(tasks.questions)} pictures")
        write_report(folder, summary, about, tasks, store.rows.values(), kept_finder(sweep))
    print_tables(console, summary, tasks, options.match, min(options.batch_size, len(tasks.questions)))
    say(console, f"{time.time() - started:.0f} s. Written: {folder}/results.jsonl, {', '.join(FILES)}")
    return summary
