"""``vtc horizon``: the measurement as a job that resumes, with a table, a curve and a file."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .answer import depth_of
from .bundled import bundled_data
from .console import make_console, say_found
from .horizon import LayerInformation, horizon_layer, layer_means, measure, withdrawal_layer
from .loading import Loaded, config_hash, hardware, load_model, software
from .outputs import results_folder, writing_to
from .progress import plain_progress
from .prompt import make_row
from .store import ResultStore, write_atomic
from .tasks import TaskSet, load_tasks

DEFAULT_LIMIT = 5
SEARCH_FIRST, SEARCH_DEPTH = 5, 32  # VTW searches from layer 5 of 32 on


@dataclass
class HorizonOptions:
    """Options of a measurement; the command line's defaults.

    ``limit`` is the number of questions per task (None: ``DEFAULT_LIMIT`` with the bundled model on its own tasks, else
    all), ``window`` the side of the windows in tokens, ``threshold`` the information below which a layer has none,
    ``search`` None or ``"vtw"``, whose windows are not measured, ``eta`` the divergence it allows, ``start`` the first
    layer looked at (None: the lowest possible one, in a search VTW's 5 of 32).
    """

    model: str | None = None
    data: Path | None = None
    tasks: Sequence[str] | None = None
    limit: int | None = None
    window: int = 2
    threshold: float = 0.02
    search: str | None = None
    eta: float = 0.003
    start: int | None = None
    output: Path | None = None
    batch_size: int = 64
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Horizon:
    """What was found: the layer (None: there is none), the means per layer, and the unpruned model's."""

    layer: int | None
    layers: list[LayerInformation]
    p_full: float
    accuracy: float
    questions: int


def check_options(options: HorizonOptions) -> None:
    """Refuse options out of range before anything is loaded.

    Raises
    ------
    ValueError
        The message names the option.
    """
    if options.search not in (None, "vtw"):
        raise ValueError(f"--search {options.search!r} is unknown: there is vtw")
    for name, value, least in (("limit", options.limit, 1), ("window", options.window, 1), ("start", options.start, 1)):
        if value is not None and value < least:
            raise ValueError(f"--{name} {value} is out of range: it must be at least {least}")
    for name, number in (("threshold", options.threshold), ("eta", options.eta)):
        if not number > 0:
            raise ValueError(f"--{name} {number} is out of range: it must be above 0")


def _layers(options: HorizonOptions, depth: int) -> list[int]:
    start = options.start
    if start is None:
        start = max(1, SEARCH_FIRST * depth // SEARCH_DEPTH) if options.search else 1
    if start >= depth:
        raise ValueError(f"--start {start} is out of range: the model has {depth} decoder layers")
    return list(range(start, depth))


def _configuration(options: HorizonOptions, loaded: Loaded, tasks: TaskSet, layers: Sequence[int]) -> dict[str, Any]:
    parameter = next(loaded.model.parameters())
    versions = software()
    return {
        "model": loaded.identity, "data": tasks.fingerprint, "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type, "layers": list(layers), "window": None if options.search else options.window,
        "vtc": versions["vtc"], "torch": versions["torch"], "transformers": versions["transformers"],
    }  # fmt: skip


def draw_horizon(found: Horizon, path: Path, title: str, threshold: float | None) -> None:
    """Draw information per layer, and below it what is left of the answer when all visual tokens leave.

    Parameters
    ----------
    found : Horizon
        What to draw; without windows the upper panel shows the divergence.
    path : Path
        The PNG; replaced in one go.
    title : str
        Heading.
    threshold : float, optional
        Drawn as a line in the upper panel.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 6.2), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    x = [m.layer for m in found.layers]
    if found.layers[0].best_info is not None:
        upper.plot(x, [m.best_info for m in found.layers], marker="o", color="#0072B2", label="strongest window")
        upper.plot(x, [m.mean_info for m in found.layers], marker="s", color="#D55E00", label="mean over windows")
        upper.set_ylabel("|change of the answer's probability|")
    else:
        upper.plot(x, [m.kl for m in found.layers], marker="o", color="#0072B2", label="KL from unpruned")
        upper.set_ylabel("KL divergence (nats)")
        upper.set_yscale("symlog", linthresh=1e-4)
    if threshold is not None:
        upper.axhline(threshold, color="0.35", linestyle="--", linewidth=1.1, label=f"threshold {threshold:g}")
    lower.plot(
        x, [100 * m.p_text for m in found.layers], marker="o", color="#009E73", label="probability of the answer"
    )
    lower.plot(x, [100 * m.accuracy for m in found.layers], marker="^", color="#CC79A7", label="first token right")
    lower.axhline(100 * found.p_full, color="#009E73", linestyle=":", linewidth=1.2)
    lower.axhline(100 * found.accuracy, color="#CC79A7", linestyle=":", linewidth=1.2)
    lower.set_ylabel("% without visual tokens\nfrom this layer on (dotted: unpruned)")
    lower.set_xlabel("decoder layer")
    lower.set_xticks(x if len(x) <= 16 else x[:: len(x) // 12])
    for axes in (upper, lower):
        if found.layer is not None:
            axes.axvline(found.layer, color="0.2", linewidth=1)
        axes.grid(True, color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(fontsize=8, framealpha=0.9)
    if found.layer is not None:
        upper.annotate(
            f"layer {found.layer}", (found.layer, 1), xycoords=("data", "axes fraction"), xytext=(3, -10),
            textcoords="offset points", fontsize=9,
        )  # fmt: skip
    upper.set_title(title, fontsize=10, loc="left")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomic(path, picture.getvalue())


def horizon_table(found: Horizon) -> Table:
    """The means per layer."""
    table = Table(title="Visual tokens kept from this layer on", title_justify="left", title_style="bold")
    for column in ("layer", "strongest window", "mean window", "p without any", "right without any", "KL without any"):
        table.add_column(column, justify="right")
    for m in found.layers:
        info = ["-" if v is None else f"{v:.4f}" for v in (m.best_info, m.mean_info)]
        mark = " <" if m.layer == found.layer else ""
        table.add_row(f"{m.layer}{mark}", *info, f"{m.p_text:.3f}", f"{100 * m.accuracy:.1f}%", f"{m.kl:.5f}")
    table.add_row("unpruned", "", "", f"{found.p_full:.3f}", f"{100 * found.accuracy:.1f}%", "0")
    return table


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


def run_horizon(options: HorizonOptions, console: Console | None = None) -> Horizon:
    """Measure (or go on measuring), show the table and write ``results.jsonl``, ``horizon.json`` and ``horizon.png``.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, NotImplementedError
        For an option or a model that does not work; the message is one line.
    KeyboardInterrupt
        Passed on; what was measured stays in the output folder, and the same command goes on from there.
    """
    check_options(options)
    console = console or make_console()
    started = time.time()
    everything = load_tasks(options.data or bundled_data())
    if options.data is None:
        everything = replace(everything, name="bundled")
    own = options.model is None and options.data is None
    tasks = everything.subset(options.tasks, DEFAULT_LIMIT if options.limit is None and own else options.limit)
    loaded = load_model(options.model, options.device, options.dtype)
    depth = depth_of(loaded.model)
    layers = _layers(options, depth)
    config = _configuration(options, loaded, tasks, layers)
    digest = config_hash(config)
    folder = results_folder(options.output, loaded, everything, digest, "horizon")
    with writing_to(folder):
        cell = "withdraw" if options.search else f"horizon(window={options.window})"
        what = "withdrawal" if options.search else f"windows of {options.window}x{options.window} tokens"
        console.print(
            f"{len(tasks.questions)} questions of {tasks.name} {tasks.version}, {what} at layers {layers[0]} to "
            f"{layers[-1]} of {depth}; model {loaded.name}; results in {folder}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        progress = plain_progress(console)
        with ResultStore(folder / "results.jsonl", digest) as store, progress:
            store.open()
            say_found(console, sum((cell, q.question_id) in store for q in tasks.questions), len(tasks.questions))
            bar = progress.add_task("measuring", total=len(tasks.questions))
            for question in tasks.questions:
                if (cell, question.question_id) not in store:
                    row = make_row(loaded.processor, loaded.model.config, tasks.visuals(question), question)
                    found = measure(loaded, row, layers, None if options.search else options.window, options.batch_size)
                    about = {"cell": cell, "question_id": question.question_id, "task": question.task}
                    store.append([{**about, "image_id": question.image_id, **found}])
                progress.advance(bar)
            rows = [store.rows[cell, q.question_id] for q in tasks.questions]
        result = _summarise(rows, options)
        report = {
            "horizon": result.layer, "search": options.search, "depth": depth, "questions": result.questions,
            "threshold": options.eta if options.search else options.threshold, "window": config["window"],
            "unpruned": {"p": result.p_full, "accuracy": result.accuracy}, "layers": [asdict(m) for m in result.layers],
            "configuration": config, "config_hash": digest, "model": loaded.name, "versions": software(),
            "hardware": hardware(loaded.model), "seconds": round(time.time() - started, 1),
        }  # fmt: skip
        write_atomic(folder / "horizon.json", json.dumps(report, indent=1) + "\n")
        title = f"{loaded.name}, {tasks.name} {tasks.version}, {result.questions} questions"
        draw_horizon(result, folder / "horizon.png", title, options.eta if options.search else options.threshold)
    console.print(horizon_table(result))
    console.print(_verdict(result, options, depth), highlight=False, soft_wrap=True)
    console.print(
        f"{time.time() - started:.0f} s. Written: {folder}/results.jsonl, horizon.json, horizon.png",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return result
