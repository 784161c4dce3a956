"""What a sweep's answers depend on: the key under which they are kept, and the record in ``summary.json``."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from vtc.eval.tasks.questions import TaskSet
from vtc.eval.vlm.encode_once import core_of
from vtc.eval.vlm.loading import Loaded, config_hash, hardware, software
from vtc.eval.vlm.prompts import media_form, prompt_template
from vtc.eval.vlm.pruning_settings import Cell
from vtc.pruners.base import Pruner

from .options import REPS, RunOptions, frames_of, longest_answers

KEYED = ("vtc", "torch", "torchvision", "transformers", "pillow")  # what pictures and answers are made with


def subject(loaded: Loaded, tasks: TaskSet) -> dict[str, Any]:
    """What is asked, and of which model: a part of every configuration."""
    parameter = next(loaded.model.parameters())
    return {
        "model": loaded.identity,
        "data": tasks.fingerprint,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type,
    }


def configuration(options: RunOptions, loaded: Loaded, tasks: TaskSet) -> dict[str, Any]:
    """Everything that an answer depends on besides its cell (the method and all its parameters) and question.

    Parameters
    ----------
    tasks : TaskSet
        The whole evaluation set, so that another number of questions is the same configuration.
    """
    versions = software()
    return {
        **subject(loaded, tasks),
        "attention": core_of(loaded.model).config._attn_implementation,
        "prompt": prompt_template(loaded.processor),
        **media_form(tasks.questions),
        "generation": {"do_sample": False, "num_beams": 1, "max_new_tokens": longest_answers(options, tasks)},
        "num_frames": frames_of(options, tasks),
        **{name: versions[name] for name in KEYED},
    }


def files_read(cells: Iterable[Cell]) -> dict[str, Any]:
    """Hashes of the files that the cells' methods read, for the configuration; empty without any.

    These are the files that parameters name, and the source of methods that are not vtc's own: who works on one wants
    no answers of an earlier draft.
    """
    from vtc.pipeline_text import parse

    pruners = [each for cell in cells if not cell.stock for pruner in parse(cell.spec) for each in _within(pruner)]
    named = {
        str(file)
        for p in pruners
        for key, value in p.params().items()
        if isinstance(value, str) and (file := _file(Path(value), p.files.get(key, ""))).is_file()
    }
    sources = {p.name: source for p in pruners if (source := _own_source(type(p)))}
    found = {name: _hash(name) for name in sorted(named)}
    methods = {name: _hash(file) for name, file in sorted(sources.items())}
    return ({"files": found} if found else {}) | ({"methods": methods} if methods else {})


def _within(pruner: Pruner) -> Iterator[Pruner]:
    """A method, and those that it is around."""
    yield pruner
    if pruner.inner is not None:
        yield from _within(pruner.inner)


def _file(path: Path, usual: str) -> Path:
    """What is read: of a folder the file that is usual there."""
    return path / usual if path.is_dir() else path


def _own_source(cls: type) -> str | None:
    """The file of a class that vtc does not bring; None for vtc's own, and where there is no file."""
    if cls.__module__.startswith("vtc."):
        return None
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return file if file and Path(file).is_file() else None


def _hash(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def provenance(loaded: Loaded, tasks: TaskSet, described: dict[str, Any], seconds: float) -> dict[str, Any]:
    """By what and on what a job was made; `described` is its configuration."""
    return {
        "configuration": described,
        "config_hash": config_hash(described),
        "model": loaded.name,
        "versions": software(),
        "hardware": hardware(loaded.model),
        "data": {
            "name": tasks.name,
            "version": tasks.version,
            "fingerprint": tasks.fingerprint,
            "limit": tasks.limit,
            "questions": tasks.counts,
            "images": len({q.image_id for q in tasks.questions}),
            "skipped": list(tasks.skipped),
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }


class Asked(Protocol):
    """The options that a sweep's record names."""

    arguments: Sequence[str] | None
    seed: int
    seeds: int
    match: str


def record(options: Asked, loaded: Loaded, tasks: TaskSet, described: dict[str, Any], seconds: float) -> dict[str, Any]:
    """How a sweep was made, for ``summary.json`` and the report."""
    return {
        **provenance(loaded, tasks, described, seconds),
        "command": shlex.join(["vtc", *(options.arguments or sys.argv[1:])]),
        "seed": options.seed,
        "seeds": options.seeds,
        "match": options.match,
        "interval": {"level": 0.95, "method": "percentile bootstrap over images", "reps": REPS},
    }
