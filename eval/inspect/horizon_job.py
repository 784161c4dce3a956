"""``vtc horizon``: the measurement as a job that resumes, with a table, a curve and a file."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from vtc.eval.files.atomic import write_atomic
from vtc.eval.files.output_folder import writing_to
from vtc.eval.sweep.answer import depth_of
from vtc.eval.sweep.asked_questions import bundled_tasks
from vtc.eval.sweep.fingerprint import subject
from vtc.eval.sweep.results_store import ResultStore, results_folder
from vtc.eval.tasks.questions import TaskSet
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.terminal.console import make_console, say_found
from vtc.eval.terminal.progress_bars_and_eta import plain_progress
from vtc.eval.vlm.loading import Loaded, config_hash, hardware, load_model, software
from vtc.eval.vlm.prompts import make_row

from .horizon import horizon_layer, layer_means, measure, withdrawal_layer
from .horizon_report import Horizon, draw_horizon, horizon_table
from .options import DEFAULT_LIMIT, HorizonOptions, check_horizon

SEARCH_FIRST, SEARCH_DEPTH = 5, 32  # VTW searches from layer 5 of 32 on


def _layers(options: HorizonOptions, depth: int) -> list[int]:
    start = options.start
    if start is None:
        start = max(1, SEARCH_FIRST * depth // SEARCH_DEPTH) if options.search else 1
    if start >= depth:
        raise ValueError(f"--start {start} is out of range: the model has {depth} decoder layers")
    return list(range(start, depth))


def _configuration(options: HorizonOptions, loaded: Loaded, tasks: TaskSet, layers: Sequence[int]) -> dict[str, Any]:
    versions = software()
    return {
        **subject(loaded, tasks),
        "layers": list(layers),
        "window": None if options.search else options.window,
        **{name: versions[name] for name in ("vtc", "torch", "transformers")},
    }


def _summarise(rows: Sequence[dict[str, Any]], options: HorizonOptions) -> Horizon:
    layers = layer_means(rows)
    numbers = [m.layer for m in layers]
    if options.search:
        layer = withdrawal_layer(numbers, [m.kl for m in layers], options.eta)
    else:
        layer = horizon_layer(numbers, [m.best_info or 0.0 for m in layers], options.threshold)
    full = sum(row["p_full"] for row in rows) / len(rows)
    return Horizon(layer, layers, full, sum(row["right_full"] for row in rows) / len(rows), len(rows))


def _verdict(found: Horizon, options: HorizonOptions, depth: int) -> str:
    last = found.layers[-1].layer
    if options.search:
        if found.layer is None:
            return (
                f"No layer up to {last} keeps the KL divergence within {options.eta:g}; vtw would change the answers."
            )
        return f"VTW: withdraw at layer {found.layer} of {depth} (KL <= {options.eta:g}): vtw(layer={found.layer})"
    if found.layer is None:
        return (
            f"No horizon: at layer {last} the strongest window still moves the answer by {options.threshold:g} or more."
        )
    return (
        f"Information horizon: layer {found.layer} of {depth} (strongest window below {options.threshold:g} from there "
        f"on). Try vtw(layer={found.layer}), or deep_random(layer={found.layer}) at any --keep."
    )


def _measure_all(
    options: HorizonOptions,
    loaded: Loaded,
    tasks: TaskSet,
    layers: Sequence[int],
    store: ResultStore,
    console: Console,
) -> list[dict[str, Any]]:
    """Measure the questions that `store` lacks; returns the rows of all."""
    window = None if options.search else options.window
    cell = "withdraw" if options.search else f"horizon(window={options.window})"
    with plain_progress(console) as progress:
        store.open()
        say_found(console, sum((cell, q.question_id) in store for q in tasks.questions), len(tasks.questions))
        bar = progress.add_task("measuring", total=len(tasks.questions))
        for question in tasks.questions:
            if (cell, question.question_id) not in store:
                row = make_row(loaded.processor, loaded.model.config, tasks.visuals(question), question)
                found = measure(loaded, row, layers, window, options.batch_size)
                about = {"cell": cell, "question_id": question.question_id, "task": question.task}
                store.append([{**about, "image_id": question.image_id, **found}])
            progress.advance(bar)
    return [store.rows[cell, q.question_id] for q in tasks.questions]


def _found(result: Horizon, options: HorizonOptions, depth: int) -> dict[str, Any]:
    return {
        "horizon": result.layer,
        "search": options.search,
        "depth": depth,
        "questions": result.questions,
        "threshold": options.eta if options.search else options.threshold,
        "window": None if options.search else options.window,
        "unpruned": {"p": result.p_full, "accuracy": result.accuracy},
        "layers": [asdict(m) for m in result.layers],
    }


def run_horizon(options: HorizonOptions, console: Console | None = None) -> Horizon:
    """Measure (or go on measuring), show the table and write ``results.jsonl``, ``horizon.json`` and ``horizon.png``.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, NotImplementedError
        For an option or a model that does not work; the message is one line.
    KeyboardInterrupt
        Passed on; what was measured stays in the output folder, and the same command goes on from there.
    """
    check_horizon(options)
    console = console or make_console()
    started = time.time()
    everything = bundled_tasks() if options.data is None else load_tasks(options.data)
    own = options.model is None and options.data is None
    tasks = everything.subset(options.tasks, DEFAULT_LIMIT if options.limit is None and own else options.limit)
    loaded = load_model(options.model, options.device, options.dtype)
    depth = depth_of(loaded.model)
    layers = _layers(options, depth)
    config = _configuration(options, loaded, tasks, layers)
    digest = config_hash(config)
    folder = results_folder(options.output, loaded, everything, digest, "horizon")
    with writing_to(folder):
        what = "withdrawal" if options.search else f"windows of {options.window}x{options.window} tokens"
        console.print(
            f"{len(tasks.questions)} questions of {tasks.name} {tasks.version}, {what} at layers {layers[0]} to "
            f"{layers[-1]} of {depth}; model {loaded.name}; results in {folder}",
            highlight=False,
            soft_wrap=True,
        )
        with ResultStore(folder / "results.jsonl", digest) as store:
            rows = _measure_all(options, loaded, tasks, layers, store, console)
        result = _summarise(rows, options)
        report = {
            **_found(result, options, depth),
            "configuration": config,
            "config_hash": digest,
            "model": loaded.name,
            "versions": software(),
            "hardware": hardware(loaded.model),
            "seconds": round(time.time() - started, 1),
        }
        write_atomic(folder / "horizon.json", json.dumps(report, indent=1) + "\n")
        title = f"{loaded.name}, {tasks.name} {tasks.version}, {result.questions} questions"
        draw_horizon(result, folder / "horizon.png", title, options.eta if options.search else options.threshold)
    console.print(horizon_table(result))
    console.print(_verdict(result, options, depth), highlight=False, soft_wrap=True)
    console.print(
        f"{time.time() - started:.0f} s. Written: {folder}/results.jsonl, horizon.json, horizon.png",
        highlight=False,
        soft_wrap=True,
    )
    return result
