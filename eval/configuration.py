"""What a sweep's answers depend on: the key under which they are kept, and the record in ``summary.json``."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vtc.spec import parse

from .encode import core_of
from .loading import Loaded, config_hash, hardware, software
from .options import BenchOptions, RunOptions, frames_of, longest_answers
from .prompt import prompt_template
from .summary import REPS
from .tasks import TaskSet

KEYED = ("vtc", "torch", "torchvision", "transformers", "pillow")  # what pictures and answers are made with


def configuration(options: RunOptions, loaded: Loaded, tasks: TaskSet) -> dict[str, Any]:
    """Everything that an answer depends on besides its cell (the method and all its parameters) and question.

    Parameters
    ----------
    tasks : TaskSet
        The whole evaluation set, so that another number of questions is the same configuration.
    """
    parameter = next(loaded.model.parameters())
    versions = software()
    return {
        "model": loaded.identity, "data": tasks.fingerprint, "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type, "attention": core_of(loaded.model).config._attn_implementation,
        "prompt": prompt_template(loaded.processor),
        "generation": {"do_sample": False, "num_beams": 1, "max_new_tokens": longest_answers(options, tasks)},
        "num_frames": frames_of(options, tasks), **{name: versions[name] for name in KEYED},
        **named_files(getattr(options, "pruners", ())),
    }  # fmt: skip


def named_files(pruners: Sequence[str]) -> dict[str, Any]:
    """What files that the methods' parameters name hold, ``{"files": {name: hash}}``; empty where they name none."""
    found = {}
    for text in pruners:
        try:
            pipeline = parse(text)
        except (ValueError, TypeError):  # "all" and the like
            continue
        for value in (v for pruner in pipeline for v in pruner.params().values() if isinstance(v, str)):
            if Path(value).is_file():
                found[value] = hashlib.sha256(Path(value).read_bytes()).hexdigest()[:16]
    return {"files": found} if found else {}


def provenance(loaded: Loaded, tasks: TaskSet, described: dict[str, Any], seconds: float) -> dict[str, Any]:
    """By what and on what a job was made; `described` is its configuration."""
    return {
        "configuration": described, "config_hash": config_hash(described), "model": loaded.name,
        "versions": software(), "hardware": hardware(loaded.model),
        "data": {
            "name": tasks.name, "version": tasks.version, "fingerprint": tasks.fingerprint, "limit": tasks.limit,
            "questions": tasks.counts, "images": len({q.image_id for q in tasks.questions}),
            "skipped": list(tasks.skipped),
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "seconds": round(seconds, 1),
    }  # fmt: skip


def record(
    options: BenchOptions, loaded: Loaded, tasks: TaskSet, described: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """How a sweep was made, for ``summary.json`` and the report."""
    return {
        **provenance(loaded, tasks, described, seconds),
        "command": shlex.join(["vtc", *(options.arguments or sys.argv[1:])]),
        "seed": options.seed, "seeds": options.seeds, "match": options.match,
        "interval": {"level": 0.95, "method": "percentile bootstrap over images", "reps": REPS},
    }  # fmt: skip
