"""``vtc train explainer``: labels and training as one job that resumes, and what it says of the result."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rich.console import Console
from rich.progress import TextColumn
from rich.table import Table

from vtc.bundled_files import bundled_data
from vtc.eval.files.atomic import write_atomic
from vtc.eval.files.output_folder import writing_to
from vtc.eval.sweep.asked_questions import load_asked
from vtc.eval.sweep.results_store import ResultStore, results_folder
from vtc.eval.tasks.questions import TaskSet
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.tasks.reading.unusable_rows import check_media
from vtc.eval.terminal.console import make_console, say, say_found
from vtc.eval.terminal.progress_bars_and_eta import plain_progress
from vtc.eval.vlm.loading import Loaded, config_hash, hardware, load_model, software
from vtc.pruners.explainer import RelevanceNetwork, save_network

from .options import DEFAULT_LIMIT, ExplainerOptions, check_options
from .relevance_labels import CELL, Sample, label_configuration, make_labels, samples
from .training_loop import Figures, as_plain, attention_alone, figures, nothing, split, train
from .training_scenes import training_scenes

LABELS, WEIGHTS, REPORT = "labels.jsonl", "explainer.safetensors", "explainer.json"


class TrainingData(Protocol):
    """Options that say what is trained on: ``data`` and ``tasks`` as for ``vtc bench``, without them new scenes."""

    data: Path | None
    data_dir: Path | None
    tasks: Sequence[str] | None
    limit: int | None
    seed: int


def training_questions(options: TrainingData, scenes: int = DEFAULT_LIMIT) -> TaskSet:
    """What the model is asked: without other data `scenes` questions per task, unless there is a limit.

    Raises
    ------
    ValueError
        If it is the bundled evaluation set, which methods are measured on.
    """
    if options.data is None and not options.tasks:
        return training_scenes(options.seed, options.limit or scenes)
    everything, names = load_asked(options.tasks, options.data, options.data_dir)
    kept_apart = load_tasks(bundled_data())
    if everything.name == "bundled" or {*everything.images} & {*kept_apart.images}:
        raise ValueError(
            "the bundled evaluation set is what methods are measured on, so nothing is trained on it: give other "
            "questions, or leave --data and --tasks out to have the bundled model asked about new scenes"
        )
    return check_media(everything.subset(names, options.limit), "stop")


def describe(options: ExplainerOptions, loaded: Loaded, tasks: TaskSet) -> dict[str, Any]:
    """What the weights depend on."""
    return {
        **label_configuration(loaded, tasks, options.max_new_tokens),
        **asdict(options.settings),
        "questions": len(tasks.questions),
        "tasks": list(tasks.tasks),
    }


def judge(network: Any, judged: Sequence[Sample]) -> dict[str, Figures]:
    """The network on held-out samples, beside predictors that were not trained."""
    return {
        "network": figures(judged, network),
        "first-layer attention": figures(judged, attention_alone),
        "uniform": figures(judged, nothing),
    }


def figures_table(found: dict[str, Figures]) -> Table:
    """The figures of all predictors."""
    table = Table(title="Held-out questions", title_justify="left", title_style="bold")
    table.add_column("predictor")
    table.add_column("KL from the oracle", justify="right")
    keeps = list(next(iter(found.values())).overlap)
    for keep in keeps:
        table.add_column(f"of its top {100 * float(keep):g}%", justify="right")
    for name, one in found.items():
        shown = ["" if name == "uniform" else f"{100 * one.overlap[keep]:.1f}%" for keep in keeps]
        table.add_row(name, f"{one.kl:.3f}", *shown)
    table.add_row("chance", "", *(f"{100 * float(keep):.1f}%" for keep in keeps))
    return table


class Trained(NamedTuple):
    """A network, what it learnt from and is judged on, how the epochs went, and how many answers were right."""

    network: RelevanceNetwork
    learnt: list[Sample]
    judged: list[Sample]
    history: list[dict[str, float]]
    right: int
    sizes: dict[str, str]


def _label_and_train(
    options: ExplainerOptions, loaded: Loaded, tasks: TaskSet, store: ResultStore, checkpoint: Path, console: Console
) -> Trained:
    """Label what `store` lacks, and train on what was answered rightly."""
    with plain_progress(console, TextColumn("{task.fields[said]}")) as progress:
        store.open()
        say_found(console, sum((CELL, q.question_id) in store for q in tasks.questions), len(tasks.questions))
        bar = progress.add_task("labelling", total=len(tasks.questions), said="")
        make_labels(loaded, tasks, store, options.max_new_tokens, lambda n: progress.advance(bar, n))
        learnt, judged = split(samples(store, tasks), options.held_out)
        rows = [store.rows[CELL, q.question_id] for q in tasks.questions]
        bar = progress.add_task("training", total=options.epochs, said="")

        def note(epochs: int, row: dict[str, float]) -> None:
            said = f"KL {row['loss']:.3f}, held out {row['held_out']:.3f}" if row else ""
            progress.update(bar, advance=epochs, said=said)

        network, history = train(learnt, judged, options.settings, checkpoint, note)
    sizes = {name: str(rows[0][name]) for name in ("heads", "width")}
    return Trained(network, learnt, judged, history, sum(bool(row["right"]) for row in rows), sizes)


def _metadata(options: ExplainerOptions, loaded: Loaded, tasks: TaskSet, trained: Trained) -> dict[str, str]:
    """What the file of the weights says of them."""
    return {
        "model": loaded.name,
        "model_identity": loaded.identity,
        **trained.sizes,
        "data": f"{tasks.name} {tasks.version} ({tasks.fingerprint})",
        "samples": str(len(trained.learnt)),
        "epochs": str(options.epochs),
        "seed": str(options.seed),
        "vtc": software()["vtc"],
    }


def run_explainer(options: ExplainerOptions, console: Console | None = None) -> dict[str, Figures]:
    """Label and train (or go on with it); writes ``labels.jsonl``, ``explainer.safetensors`` and ``explainer.json``.

    Returns
    -------
    dict of Figures
        Held-out figures of the network and of what was not trained.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, NotImplementedError
        For an option, a model or questions that don't work; the message is one line.
    KeyboardInterrupt
        Passed on; what was finished stays in the output folder, and the same command goes on from there.
    """
    check_options(options)
    console, started = console or make_console(), time.time()
    tasks = training_questions(options)
    loaded = load_model(options.model, options.device, options.dtype)
    described = describe(options, loaded, tasks)
    digest = config_hash(label_configuration(loaded, tasks, options.max_new_tokens))
    folder = results_folder(options.output, loaded, tasks, digest, "explainer")
    with writing_to(folder):
        asked = f"{len(tasks.questions)} questions of {tasks.name} {tasks.version}"
        say(console, f"{asked}; model {loaded.name}; results in {folder}")
        with ResultStore(folder / LABELS, digest) as store:
            checkpoint = folder / f"training-{config_hash(described)[:8]}.pt"
            trained = _label_and_train(options, loaded, tasks, store, checkpoint, console)
        learnt, judged, right = trained.learnt, trained.judged, trained.right
        result = judge(trained.network, judged)
        draft = folder / f".{WEIGHTS}.part"
        save_network(draft, trained.network, _metadata(options, loaded, tasks, trained))
        draft.replace(folder / WEIGHTS)
        report = {
            "command": shlex.join(["vtc", *(options.arguments or sys.argv[1:])]),
            "model": loaded.name,
            "configuration": described,
            "config_hash": config_hash(described),
            "questions": len(tasks.questions),
            "answered_rightly": right,
            "samples": {
                "trained_on": len(learnt),
                "held_out": len(judged),
                "images_trained_on": len({s.image_id for s in learnt}),
                "images_held_out": len({s.image_id for s in judged}),
            },
            "held_out": {name: as_plain(one) for name, one in result.items()},
            "history": trained.history,
            "versions": software(),
            "hardware": hardware(loaded.model),
            "seconds": round(time.time() - started, 1),
        }
        write_atomic(folder / REPORT, json.dumps(report, indent=1) + "\n")
    console.print(figures_table(result))
    share = f"{100 * right / len(tasks.questions):.1f}% of the questions answered rightly"
    say(
        console,
        f"{share}; trained on {len(learnt)} samples, {len(judged)} held out. "
        f"Use it: vtc bench --pruners \"explainer(weights='{folder / WEIGHTS}')\"",
        f"{time.time() - started:.0f} s. Written: {folder}/{WEIGHTS}, {REPORT}, {LABELS}",
    )
    return result
