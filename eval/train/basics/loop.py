"""The loop that all stages share: schedule, progress bar, log and resumable checkpoints."""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .distributed_ranks import Ranks

_FLOOR = 0.02


class Stateful(Protocol):
    """Anything with the state-dict methods of torch."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Restore the state."""


@dataclass(frozen=True)
class Place:
    """Where a run lives, which rank this is, and how often it saves."""

    folder: Path
    ranks: Ranks
    save_seconds: float = 90.0
    log_every: int = 50
    stop_after: int | None = None


def rate_factor(step: int, total: int, warmup: int, hold: float = 0.0) -> float:
    """Return the share of the peak learning rate at a step.

    Parameters
    ----------
    step, total, warmup : int
        Current step, number of steps and of linear warm-up steps.
    hold : float
        Share of the steps that stay at the peak before the cosine decay to 2%.
    """
    progress = max(0.0, step / total - hold) / (1.0 - hold)
    cosine = 0.5 * (1 + math.cos(math.pi * progress)) * (1 - _FLOOR) + _FLOOR
    return min(1.0, (step + 1) / warmup) * cosine


def run_steps(
    place: Place,
    stage: str,
    total: int,
    train_step: Callable[[int], dict[str, float]],
    parts: dict[str, Stateful],
) -> bool:
    """Run the steps of one stage, resuming from its checkpoint if there is one.

    Parameters
    ----------
    place : Place
        Folder, rank and intervals.
    stage : str
        Name of the stage, used for its checkpoint and log.
    total : int
        Number of steps.
    train_step : callable
        Does one step and returns its figures (``nan`` where one does not apply).
    parts : dict
        What a checkpoint has to hold; data is drawn from the step number and needs no state.

    Returns
    -------
    bool
        Whether the stage is complete.
    """
    checkpoint = place.folder / f"{stage}.pt"
    start = load_checkpoint(checkpoint, parts)
    parent = os.getppid()
    if place.ranks.is_first:
        _forget_after(place.folder / f"{stage}.jsonl", start)
    saved_at, began = time.monotonic(), time.monotonic()
    figures: dict[str, list[float]] = defaultdict(list)
    with _progress_bar(place.ranks.is_first) as bar:
        task = bar.add_task(stage, total=total, completed=start, figures="")
        for step in range(start, total):
            if os.getppid() != parent:
                raise RuntimeError("the process that started this rank is gone")
            for name, value in train_step(step).items():
                figures[name].append(value)
            done = step + 1
            bar.update(task, completed=done)
            if not place.ranks.is_first:
                continue
            if done % place.log_every == 0 or done == total:
                seconds = time.monotonic() - began
                row = {"step": done, "seconds": round(seconds, 1), "rate": (done - start) / seconds}
                row.update({name: _mean(values) for name, values in figures.items()})
                figures.clear()
                _append(place.folder / f"{stage}.jsonl", row)
                bar.update(task, figures=_short(row))
            stopping = place.stop_after is not None and done - start >= place.stop_after
            if time.monotonic() - saved_at > place.save_seconds or done == total or stopping:
                save_checkpoint(checkpoint, parts, done)
                saved_at = time.monotonic()
            if stopping:
                return done == total
    return True


def save_checkpoint(path: Path, parts: dict[str, Stateful], step: int) -> None:
    """Write a checkpoint so that a kill at any moment leaves either the old or the new one."""
    temporary = path.with_suffix(".tmp")
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"step": step, "parts": state}, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path, parts: dict[str, Stateful]) -> int:
    """Restore the parts from a checkpoint and return its step; 0 without a checkpoint."""
    if not path.exists():
        return 0
    stored = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(stored["parts"][name])
    return int(stored["step"])


def _progress_bar(visible: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        disable=not visible,
        refresh_per_second=1,
    )


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return round(sum(known) / len(known), 4) if known else None


def _short(row: dict[str, Any]) -> str:
    shown = [f"{k} {v:.2f}" for k, v in row.items() if isinstance(v, float) and k != "seconds"]
    return " ".join(shown[:6])


def _forget_after(path: Path, step: int) -> None:
    """Drop log rows of steps that a resumed run does again."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
