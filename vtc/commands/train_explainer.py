"""``vtc train-explainer`` trains the network of the ``explainer`` method: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import DataDir, Device, Dtype, Model, folders


def train_explainer(
    context: typer.Context,
    model: Model = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with images.parquet and questions.parquet to train on.")
    ] = None,
    data_dir: DataDir = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks, comma-separated. Without --data and --tasks the bundled model is asked new scenes."),
    ] = None,
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
    from vtc.eval.train.explainer.train_job import ExplainerOptions, run_explainer
    from vtc.eval.vlm.pruning_settings import split_list

    run_explainer(
        ExplainerOptions(
            model=model,
            data=data,
            data_dir=data_dir,
            tasks=split_list(tasks) if tasks else None,
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
    )
