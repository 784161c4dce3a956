"""The file of a run, and what of an older one must be the same for times to be compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vtc.eval.files.atomic import write_atomic
from vtc.eval.vlm.loading import hardware, software

from .figures import Figures
from .older_run import FORMAT
from .options import SpeedOptions
from .subject import Subject

SAME = {  # what must be the same, by what it is called in words
    "identity": "model",
    "layers": "layers measured",
    "image": "picture",
    "batch": "batch",
    "dtype": "dtype",
    "clock": "clock",
    "device": "device",
    "cpu": "processor",
    "gpu": "GPU",
    "threads": "number of threads",
    "prompt": "tokens of the prompt",
}


def about(options: SpeedOptions, subject: Subject, clock: str) -> dict[str, Any]:
    """What was measured, on what."""
    machine = hardware(subject.model)
    return {
        "model": subject.name,
        "identity": subject.identity,
        "random_weights": subject.shaped,
        "layers": _layers(subject),
        **options.settings(),
        "dtype": str(next(subject.model.parameters()).dtype).removeprefix("torch."),
        "prompt": [len(subject.row.ids), subject.row.visual],
        "rounds": options.rounds,
        "seed": options.seed,
        "clock": clock,
        **{name: machine.get(name) for name in ("device", "cpu", "gpu", "threads", "cpus", "load")},
        "software": software(),
    }


def _layers(subject: Subject) -> dict[str, list[int]]:
    """Measured ones and all, of the decoder and of the tower."""
    stacks = {"decoder": subject.text, "tower": subject.tower}
    return {name: [len(stack.picked), stack.depth] for name, stack in stacks.items() if stack is not None}


def as_json(told: Mapping[str, Any], found: Sequence[Figures], cut: bool) -> dict[str, Any]:
    """Everything, ready for JSON; times in seconds."""
    return {"vtc_speed": FORMAT, "about": dict(told), "rows": [_row(one, told, cut) for one in found]}


def _row(one: Figures, told: Mapping[str, Any], cut: bool) -> dict[str, Any]:
    limit = None if one.limit is None else {**dataclasses.asdict(one.limit), "speed_up": one.limit.speed_up}
    return {
        "spec": one.cell.spec,
        "method": one.cell.method,
        "keep": one.cell.keep,
        "extrapolated": cut,
        "layers": told["layers"],
        "visual_tokens": list(one.facts.visual),
        "text_tokens": one.facts.text,
        "kv_bytes": one.facts.kv_bytes,
        "peak_memory": one.rounds.peak,
        "peak_memory_of": one.rounds.peak_of,
        "seconds": one.seconds,
        "rounds": one.rounds.seconds,
        "attained": one.attained._asdict(),
        "limit": limit,
        "of_limit": one.of_limit,
        "attainable": None if one.attainable is None else one.attainable._asdict(),
        "of_attainable": one.of_attainable,
        "tower": None if one.tower is None else one.tower._asdict(),
        "tower_limit": one.tower_limit,
        "of_tower_limit": one.of_tower_limit,
    }


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all."""
    write_atomic(path, json.dumps(result, indent=1) + "\n")


def refuse_other(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to compare times of different things.

    Parameters
    ----------
    old, new : mapping
        What ``about`` said.

    Raises
    ------
    ValueError
        Saying what differs.
    """
    differ = [
        f"{words}: {_shown(old.get(name))} then, {_shown(new.get(name))} now"
        for name, words in SAME.items()
        if json.dumps(old.get(name)) != json.dumps(new.get(name))
    ]
    if differ:
        raise ValueError(f"--compare: the older run's times are of something else ({'; '.join(differ)})")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{' of '.join(map(str, v))} {k}" for k, v in value.items())
    return "none" if value is None else str(value)
