"""``vtc fitprune``: fits how many visual tokens may go after each layer, for bounds on what attention loses."""

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
from vtc.eval.terminal.console import make_console, say
from vtc.eval.terminal.progress_bars_and_eta import plain_progress
from vtc.eval.train.explainer.train_job import training_questions
from vtc.eval.vlm.loading import load_model, software
from vtc.eval.vlm.prompts import make_row
from vtc.pruners.fitprune import FORMAT, falls

from .within_a_bound import left_after_layers

BOUNDS = [i / 16 for i in range(1, 16)]
SCENES = 5


@dataclass
class FitOptions:
    """Options of a fit; the command line's defaults. Without data and tasks the model is asked about new scenes."""

    model: str | None = None
    data: Path | None = None
    data_dir: Path | None = None
    tasks: Sequence[str] | None = None
    limit: int | None = None
    seed: int = 0
    output: Path = Path("schedule.json")
    device: str = "auto"
    dtype: str = "auto"


def run_fitprune(options: FitOptions, console: Console | None = None) -> Tensor:
    """Measure, and write the file that ``fitprune(schedule=...)`` reads; gives what is left `[bounds, layers - 1]`.

    Raises
    ------
    ValueError, FileNotFoundError, NotImplementedError
        For an option, a model or questions that do not work; the message is one line.
    """
    console, started = console or make_console(), time.time()
    tasks = training_questions(options, SCENES)
    loaded = load_model(options.model, options.device, options.dtype)
    found = []
    with plain_progress(console) as progress:
        for question in progress.track(tasks.questions, description="dropping within bounds"):
            row = make_row(loaded.processor, loaded.model.config, tasks.visuals(question), question)
            if row.visual:
                found.append(left_after_layers(loaded.model, row, BOUNDS))
    if not found:
        raise ValueError(f"{tasks.name} has no question with a picture, so nothing is told about visual tokens")
    left = torch.stack(found).mean(0)
    rounded = [[float(f"{share:.6g}") for share in shares] for shares in left.tolist()]
    recipes = [(alpha, kept) for alpha, kept in zip(BOUNDS, rounded, strict=True) if falls(tuple(kept))]
    if not recipes:
        raise ValueError(f"nothing can go of the pictures of {tasks.name} within any bound")
    about = {
        "format": FORMAT,
        "model": loaded.name,
        "identity": loaded.identity,
        "data": tasks.name,
        "questions": len(found),
        "recipes": [{"alpha": alpha, "kept": kept} for alpha, kept in recipes],
        "versions": software(),
    }
    write_atomic(options.output, json.dumps(about, indent=1) + "\n")
    last = ", ".join(f"{alpha:.2f}: {kept[-1]:.0%}" for alpha, kept in recipes[:: max(1, len(recipes) // 5)])
    say(
        console,
        f"{len(found)} questions of {tasks.name}, {left.shape[1] + 1} layers of {loaded.name}. Tokens left in the last "
        f"by the share of attention that may go: {last}",
        f"{time.time() - started:.0f} s. Written: {options.output}. Use it: fitprune(schedule='{options.output}')",
    )
    return left
