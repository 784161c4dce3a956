"""Measurements of a model's decoder, their options.

``vtc horizon`` measures from which layer on visual tokens tell nothing, ``vtc hawk`` how much each head matters, and
``vtc fitprune`` how many visual tokens may go after each layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    DataDir,
    Device,
    Dtype,
    Model,
    Overwrite,
    folders,
    heavy_imports,
    output_file,
    output_folder,
    question_folder,
    split_tasks,
    task_names,
)


def horizon(
    window: Annotated[int, typer.Option(help="Side of the windows that are kept one at a time, in tokens.")] = 2,
    threshold: Annotated[
        float, typer.Option(help="A layer has no information when no window moves the answer's probability by more.")
    ] = 0.02,
    search: Annotated[
        str | None, typer.Option(help="'vtw': only search the layer at which all visual tokens may leave.")
    ] = None,
    eta: Annotated[float, typer.Option(help="KL divergence that --search vtw allows.")] = 0.003,
    tasks: Annotated[str | None, typer.Option(help="Tasks, comma-separated; all if left out.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Questions per task (default: 5 on the bundled model and tasks, else all).")
    ] = None,
    start: Annotated[int | None, typer.Option(help="First layer to look at.")] = None,
    model: Model = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with images.parquet and questions.parquet of your own.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results; the same command resumes there (default: vtc-horizon/<model>-<data>-<hash>)."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows per batch.")] = 64,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Measure what visual tokens still tell at each decoder layer, and from which layer on nothing."""
    output_folder(output)
    from vtc.eval.inspect.options import HorizonOptions, check_horizon
    from vtc.eval.sweep.asked_questions import bundled_tasks

    names = split_tasks(tasks)
    question_folder(data, names)
    asked = HorizonOptions(
        model=model,
        data=data,
        tasks=names,
        limit=limit,
        window=window,
        threshold=threshold,
        search=search,
        eta=eta,
        start=start,
        output=output,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
    )
    check_horizon(asked)
    if data is None:
        bundled_tasks().refuse(asked.tasks)
    with heavy_imports():
        from vtc.eval.inspect.horizon_job import run_horizon

    run_horizon(asked)


def hawk(
    tasks: Annotated[str | None, typer.Option(help="Tasks, comma-separated; all if left out.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Questions per task.")] = 20,
    model: Model = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with images.parquet and questions.parquet of your own.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="What to write, for hawk(weights=...) (default: heads.json, numbered if it is there)."),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Weigh the attention heads of a model's first layer by what its answers lose without them, for hawk."""
    file = output_file("--output", output, "heads.json", overwrite, None)
    from vtc.eval.sweep.asked_questions import bundled_tasks

    names = split_tasks(tasks)
    question_folder(data, names)
    if data is None:
        bundled_tasks().refuse(names)
    with heavy_imports():
        from vtc.eval.heads.hawk_job import HawkOptions, run_hawk

    run_hawk(HawkOptions(model, data, names, limit, file, device, dtype))


def fitprune(
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks, comma-separated; new scenes without --data and --tasks."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions per task (default: 5 of these scenes, else all).")
    ] = None,
    model: Model = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with images.parquet and questions.parquet of your own.")
    ] = None,
    data_dir: DataDir = None,
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            help="What to write, for fitprune(schedule=...) (default: schedule.json, numbered if it is there)."
        ),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Fit how many visual tokens may go after each layer of a model, for fitprune."""
    folders(("--data", data), ("--data-dir", data_dir))
    file = output_file("--output", output, "schedule.json", overwrite, None)
    names = task_names(tasks, data)
    with heavy_imports():
        from vtc.eval.schedules.fitprune_job import FitOptions, run_fitprune

    run_fitprune(FitOptions(model, data, data_dir, names, limit, seed, file, device, dtype))
