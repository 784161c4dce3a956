"""``vtc hawk``: weighs a model's heads by what its answers lose without them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from vtc.eval.files.atomic import write_atomic
from vtc.eval.sweep.asked_questions import bundled_tasks
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.terminal.console import make_console, say
from vtc.eval.terminal.progress_bars_and_eta import plain_progress
from vtc.eval.vlm.loading import load_model, software
from vtc.eval.vlm.prompts import make_row
from vtc.pruners.hawk import FORMAT

from .lost_without import lost, weights_of

SHOWN = 8  # heads


@dataclass
class HawkOptions:
    """Options of a measurement; the command line's defaults."""

    model: str | None = None
    data: Path | None = None
    tasks: Sequence[str] | None = None
    limit: int = 20
    output: Path = Path("heads.json")
    device: str = "auto"
    dtype: str = "auto"


def run_hawk(options: HawkOptions, console: Console | None = None) -> Tensor:
    """Measure, say which heads matter, and write the file that ``hawk(weights=...)`` reads; gives the weights `[H]`.

    Raises
    ------
    ValueError, FileNotFoundError, NotImplementedError
        For an option or a model that does not work; the message is one line.
    """
    console, started = console or make_console(), time.time()
    everything = bundled_tasks() if options.data is None else load_tasks(options.data)
    tasks = everything.subset(options.tasks, options.limit)
    loaded = load_model(options.model, options.device, options.dtype)
    found: dict[str, list[Tensor]] = {}
    with plain_progress(console) as progress:
        for question in progress.track(tasks.questions, description="asking without each head"):
            row = make_row(loaded.processor, loaded.model.config, tasks.visuals(question), question)
            found.setdefault(question.task, []).append(lost(loaded, row))
    drops = torch.stack([torch.stack(rows).mean(0) for rows in found.values()])
    weights = weights_of(drops)
    about = {
        "format": FORMAT,
        "model": loaded.name,
        "identity": loaded.identity,
        "data": tasks.name,
        "questions": {task: len(rows) for task, rows in found.items()},
        "lost": {task: [float(f"{x:.6g}") for x in row] for task, row in zip(found, drops.tolist(), strict=True)},
        "weights": [float(f"{w:.6g}") for w in weights.tolist()],
        "versions": software(),
    }
    write_atomic(options.output, json.dumps(about, indent=1) + "\n")
    order = weights.argsort(descending=True)[:SHOWN].tolist()
    say(
        console,
        f"{len(tasks.questions)} questions of {tasks.name}, {len(weights)} heads of layer 0 of {loaded.name}; alike "
        f"would be {1 / len(weights):.3f} each. Most: " + ", ".join(f"head {h} {float(weights[h]):.3f}" for h in order),
        f"{time.time() - started:.0f} s. Written: {options.output}. Use it: hawk(weights='{options.output}')",
    )
    return weights
