"""``vtc train``: the networks of trained methods, and of the explainer (``vtc train-explainer`` is the same)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from vtc.pruners.method_modules import TRAINED

from .options import DataDir, Device, Dtype, Model, folders, heavy_imports, output_folder, task_names

Data = Annotated[Path | None, typer.Option(help="Folder with images.parquet and questions.parquet to train on.")]
Tasks = Annotated[
    str | None,
    typer.Option(help="Tasks, comma-separated. Without --data and --tasks the bundled model is asked new scenes."),
]

Number = TypeVar("Number", int, float)

train = typer.Typer(
    help="Train the network of a method, and the model around it.", no_args_is_help=True, rich_markup_mode=None
)


def train_explainer(
    context: typer.Context,
    model: Model = None,
    data: Data = None,
    data_dir: DataDir = None,
    tasks: Tasks = None,
    limit: Annotated[
        int | None, typer.Option(help="Questions per task (default: 100 of the bundled model's scenes, else all).")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for weights and labels; the same command resumes there (default: vtc-explainer/<model>-...)."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the samples.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Samples per step.")] = 128,
    rate: Annotated[float, typer.Option(help="Adam's learning rate.")] = 1e-3,
    held_out: Annotated[float, typer.Option(help="Share of the images that are only judged by.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the network, the order, and the scenes.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Train the network of the explainer method on what a model's answers rest on."""
    folders(("--data", data), ("--data-dir", data_dir))
    output_folder(output)
    from vtc.eval.train.explainer.options import ExplainerOptions, check_options

    asked = ExplainerOptions(
        model=model,
        data=data,
        data_dir=data_dir,
        tasks=task_names(tasks, data),
        limit=limit,
        output=output,
        epochs=epochs,
        batch_size=batch_size,
        rate=rate,
        held_out=held_out,
        seed=seed,
        max_new_tokens=max_new_tokens,
        device=device,
        dtype=dtype,
        arguments=context.obj,
    )
    check_options(asked)
    with heavy_imports():
        from vtc.eval.train.explainer.train_job import run_explainer

    run_explainer(asked)


def train_compressor(
    context: typer.Context,
    model: Model = None,
    data: Data = None,
    data_dir: DataDir = None,
    tasks: Tasks = None,
    limit: Annotated[
        int | None, typer.Option(help="Questions per task (default: 600 of the bundled model's scenes, else all).")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the result; the same command resumes there (default: vtc-train-METHOD/...)."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="A trained network to start from, a file or folder (default: a new one).")
    ] = None,
    stage: Annotated[
        str,
        typer.Option(
            help="align: the network alone; sft: projector and language model too; caption: the captioner of langdc."
        ),
    ] = "sft",
    train: Annotated[
        str | None,
        typer.Option(help="What learns, in place of the stage's: compressor,projector,lm or compressor,lora."),
    ] = None,
    keep: Annotated[int | None, typer.Option(help="Tokens per picture in every step, in place of --counts.")] = None,
    counts: Annotated[
        str | None,
        typer.Option(help="Tokens per picture, drawn for every step, as 64,144,256 (default: the method's)."),
    ] = None,
    shares: Annotated[str | None, typer.Option(help="How often each of --counts is drawn, as 0.2,0.3,0.5.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the optimizer.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Questions at once, per process.")] = 4,
    accumulate: Annotated[int, typer.Option(help="Batches per step.")] = 1,
    rate: Annotated[float, typer.Option(help="Highest learning rate of network and projector.")] = 1e-3,
    lm_rate: Annotated[float, typer.Option(help="Highest learning rate of the language model or its adapter.")] = 2e-5,
    seed: Annotated[int, typer.Option(help="Seed of the order, the counts, and the scenes.")] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16; weights stay in float32.")] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory for more time.")
    ] = False,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    device: Device = "auto",
) -> None:
    """Train the network of this method; --stage and --train say what learns with it. The tower never does."""
    folders(("--data", data), ("--data-dir", data_dir))
    output_folder(output)
    from vtc.eval.train.compressor.options import CompressorOptions, check_options

    options = CompressorOptions(
        method=str(context.info_name),
        model=model,
        data=data,
        data_dir=data_dir,
        tasks=task_names(tasks, data),
        limit=limit,
        output=output,
        weights=weights,
        stage=stage,
        train=[part.strip() for part in train.split(",")] if train else None,
        keep=keep,
        counts=_numbers("--counts", counts, int),
        shares=_numbers("--shares", shares, float),
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        rate=rate,
        lm_rate=lm_rate,
        seed=seed,
        bf16=bf16,
        checkpointing=gradient_checkpointing,
        save_every=save_every,
        device=device,
        arguments=context.obj,
    )
    check_options(options)
    with heavy_imports():
        from vtc.eval.train.compressor.train_job import run_training

    run_training(options)


def _numbers(option: str, text: str | None, kind: Callable[[str], Number]) -> list[Number] | None:
    try:
        return None if text is None else [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be numbers with commas between them, got {text!r}") from None


train.command("explainer")(train_explainer)
for _name in TRAINED:
    train.command(_name)(train_compressor)
