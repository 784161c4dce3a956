"""``vtc train METHOD``: one job that resumes, and what it leaves."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import TextColumn
from transformers import PrinterCallback

from vtc.eval.files.output_folder import writing_to
from vtc.eval.sweep.results_store import results_folder
from vtc.eval.tasks.questions import TaskSet
from vtc.eval.terminal.console import make_console, say
from vtc.eval.terminal.progress_bars_and_eta import plain_progress
from vtc.eval.train.explainer.train_job import training_questions
from vtc.eval.vlm.loading import Loaded, config_hash, hardware, load_model, software
from vtc.models.facts_of_model import facts_of
from vtc.models.layout.model_parts import locate
from vtc.pruners.registry import make_pruner
from vtc.pruners.trained.compressor import UNTRAINED
from vtc.pruners.trained.network_file import NAME

from .answered_questions import Collator, Questions
from .live_network import Subject, counts_of, training
from .options import CAPTION, CAPTIONING, CompressorOptions, check_options
from .run_files import SMOOTH, smoothed, write_files
from .trainer import CompressorTrainer, Watch, arguments_of, last_checkpoint
from .training_clips import training_clips

RUN = "run"
DEFAULT_SCENES = 600


def asked_of(options: CompressorOptions) -> TaskSet:
    """What is trained on: without data new scenes, or clips for a method for video."""
    if options.method in CAPTIONING and options.data is None and not options.tasks:
        return training_clips(options.seed, options.limit or DEFAULT_SCENES, options.stage == CAPTION)
    return training_questions(options, DEFAULT_SCENES)


def describe(options: CompressorOptions, loaded: Loaded, tasks: TaskSet) -> dict[str, Any]:
    """What the weights depend on."""
    return {
        "method": options.method,
        "model": loaded.identity,
        "data": tasks.fingerprint,
        "questions": len(tasks.questions),
        "weights": options.weights,
        "parts": list(options.parts),
        "counts": [list(pair) for pair in counts_of(options)],
        **({"stage": CAPTION} if options.stage == CAPTION else {}),
        **{k: getattr(options, k) for k in ("steps", "batch_size", "accumulate", "rate", "lm_rate", "seed", "bf16")},
        "versions": software(),
    }


def run_training(options: CompressorOptions, console: Console | None = None) -> Path:
    """Train, or go on with it; writes the network or the whole model, ``report.json``, ``curves.png``, ``README.md``.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, NotImplementedError
        For an option, a model or questions that don't work; the message is one line.
    KeyboardInterrupt
        Passed on; the same command goes on from the last checkpoint.
    """
    check_options(options)
    console, started = console or make_console(), time.time()
    tasks = asked_of(options)
    data = Questions(tasks)
    make_pruner(options.method, weights=options.weights or UNTRAINED).check_files()
    loaded = load_model(options.model, _own_device(options.device), "float32")
    described = describe(options, loaded, tasks)
    digest = config_hash(described)
    folder = results_folder(options.output, loaded, tasks, digest, f"train-{options.method}")
    place = folder / RUN / digest[:8]
    collator = Collator(loaded.processor, tasks)
    with writing_to(folder), training(loaded.model, options, collator([data[0]]), loaded.processor) as subject:
        trainer, history = _trainer(subject, options, place, data, collator, console)
        first = trainer.is_world_process_zero()
        if first:
            asked = f"{len(tasks.questions)} questions of {tasks.name} {tasks.version}"
            count = sum(p.numel() for p in (*subject.fresh, *subject.language))
            say(console, f"{asked}; {count:,} weights of {loaded.name} learn; results in {folder}")
        _train(trainer, history, place, options, console)
        if first:
            report = _report(options, loaded, tasks, described, trainer, history, started)
            _save(subject, loaded, options, report, folder)
            say(console, f"{report['seconds']:.0f} s. {_use(options, loaded, folder)}")
        trainer.accelerator.wait_for_everyone()
    return folder


def _own_device(device: str) -> str:
    """The GPU of this process, where torchrun has started one for each."""
    mine = os.environ.get("LOCAL_RANK")
    return f"cuda:{mine}" if device in ("auto", "cuda") and mine is not None and torch.cuda.is_available() else device


def _trainer(
    subject: Subject, options: CompressorOptions, place: Path, data: Questions, collator: Collator, console: Console
) -> tuple[CompressorTrainer, list[dict[str, float]]]:
    subject.free(options.parts)
    history: list[dict[str, float]] = []
    given = {"args": arguments_of(options, place), "train_dataset": data, "data_collator": collator}
    return CompressorTrainer(subject, options, **given), history


def _train(
    trainer: CompressorTrainer,
    history: list[dict[str, float]],
    place: Path,
    options: CompressorOptions,
    console: Console,
) -> None:
    """Run the steps that are left, with a bar."""
    before = last_checkpoint(place)
    if before is not None:
        state = json.loads((Path(before) / "trainer_state.json").read_text())
        history += [{"step": row["step"], "loss": row["loss"]} for row in state["log_history"] if "loss" in row]
        if trainer.is_world_process_zero():
            say(console, f"resuming: {state['global_step']} of {options.steps} steps were done already")
    quiet = Console(quiet=True)
    with plain_progress(
        console if trainer.is_world_process_zero() else quiet, TextColumn("{task.fields[said]}")
    ) as progress:
        bar = progress.add_task("training", total=options.steps, said="", completed=len(history))

        def told(step: int, loss: float | None) -> None:
            history.append({"step": step, "loss": loss or 0.0})
            recent = smoothed([row["loss"] for row in history])[-1]
            progress.update(bar, completed=step, said=f"loss {recent:.3f}")

        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Watch(trainer.subject.model, told, options.stop_after))
        trainer.train(resume_from_checkpoint=before)


def _report(
    options: CompressorOptions,
    loaded: Loaded,
    tasks: TaskSet,
    described: dict[str, Any],
    trainer: CompressorTrainer,
    history: list[dict[str, float]],
    started: float,
) -> dict[str, Any]:
    losses = [row["loss"] for row in history]
    processes = trainer.args.world_size
    return {
        "command": shlex.join(["vtc", *(options.arguments or sys.argv[1:])]),
        "method": options.method,
        "model": loaded.name,
        "data": f"{len(tasks.questions)} questions of {tasks.name} {tasks.version} ({tasks.fingerprint})",
        "parts": list(options.parts),
        "tokens": {str(k): share for k, share in _shares(options).items()},
        "steps": options.steps,
        "batch": options.batch_size * options.accumulate * processes,
        "processes": processes,
        "seed": options.seed,
        "loss": {"first": sum(losses[:SMOOTH]) / len(losses[:SMOOTH]), "last": smoothed(losses)[-1]},
        "configuration": described,
        "hardware": hardware(loaded.model),
        "seconds": round(time.time() - started, 1),
        "history": history,
    }


def _shares(options: CompressorOptions) -> dict[int, float]:
    counts = counts_of(options)
    whole = sum(share for _, share in counts)
    return {k: share / whole for k, share in counts}


def _save(subject: Subject, loaded: Loaded, options: CompressorOptions, report: dict[str, Any], folder: Path) -> None:
    """The network alone where the model is as it was, else the model with all that belongs to it."""
    subject.finish()
    most = max((k for k, _ in subject.counts), default=None)
    subject.keep(most)
    pruner, whole = subject.pruner, options.parts != ("compressor",)
    about = ("command", "model", "data", "steps", "batch", "seed", "loss", "tokens")
    pruner.about = {name: report[name] if isinstance(report[name], str) else json.dumps(report[name]) for name in about}
    if whole:
        subject.model.save_pretrained(folder)
        loaded.processor.save_pretrained(folder)
    else:
        pruner.save(folder / NAME, pruner.about, facts_of(locate(subject.core)))
    write_files(folder, report, whole)


def _use(options: CompressorOptions, loaded: Loaded, folder: Path) -> str:
    model = "" if options.parts == ("compressor",) else f" --model {folder}"
    base = f" --model {loaded.name}" if not model and options.model else model
    return f"Use it: vtc bench{base} --pruners \"{options.method}(weights='{folder}')\" --keep ..."
