"""``vtc tune`` searches for the cheapest setting that keeps a share of the accuracy: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    BatchSize,
    CacheMB,
    DataDir,
    Device,
    Dtype,
    Import,
    IncludePath,
    MaxNewTokens,
    Model,
    NumFrames,
    OnError,
    Workers,
    folders,
    heavy_imports,
    import_all,
    output_folder,
    refuse_methods,
    task_names,
)

Target = Annotated[float, typer.Option(help="Share of the unpruned accuracy that has to be kept.")]
Pruners = Annotated[
    str,
    typer.Option(
        help="Methods to choose from, comma-separated: names, pipelines such as 'dart(pivots=16)', or all for "
        "every one that can run."
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        help="What may be kept, comma-separated: 0.25 is a quarter of an image's tokens, 64 is 64 of them "
        "(default: 0.5,0.33,0.25,0.2,0.15,0.11,0.07,0.05)."
    ),
]
By = Annotated[
    str, typer.Option(help="What is to be cheap: flops (of the prefill, with the tower), prefill (time) or tokens.")
]
Tasks = Annotated[str | None, typer.Option(help="Tasks, comma-separated, as for vtc bench; all if left out.")]
Limit = Annotated[
    int | None,
    typer.Option(
        help="Questions per task, always the same ones (default: 150 on the bundled model and tasks, else all)."
    ),
]
Confidence = Annotated[float, typer.Option(help="Of the lower bound that has to stay above the target.")]
Confirm = Annotated[
    float, typer.Option(help="Share of the images that are held out of the search, to confirm what it found.")
]
Eta = Annotated[
    float, typer.Option(help="Each rung has this many times fewer settings and more questions than the last.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the results; the same command resumes there (default: vtc-tune/<model>-<data>-<hash>)."
    ),
]
Data = Annotated[Path | None, typer.Option(help="Folder of your own instead of the bundled tasks.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the split, the bootstrap and methods that draw at random.")]


def tune(
    target: Target = 0.98,
    pruners: Pruners = "all",
    keep: Keep = None,
    by: By = "flops",
    tasks: Tasks = None,
    model: Model = None,
    imports: Import = None,
    limit: Limit = None,
    confidence: Confidence = 0.95,
    confirm: Confirm = 0.5,
    eta: Eta = 2.0,
    output: Output = None,
    data: Data = None,
    data_dir: DataDir = None,
    include_path: IncludePath = None,
    on_error: OnError = "stop",
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    max_new_tokens: MaxNewTokens = None,
    num_frames: NumFrames = None,
    workers: Workers = None,
    cache_mb: CacheMB = 2048,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Find the cheapest setting that keeps a share of the unpruned accuracy, and write it as vtc_config.json.

    Exit code 1 says that nothing qualifies.
    """
    from vtc.eval.tune.options import DEFAULT_KEEPS, TuneOptions, check_options
    from vtc.eval.vlm.pruning_settings import parse_keep, split_list

    folders(("--data", data), ("--data-dir", data_dir), ("--include-path", include_path))
    output_folder(output)
    names = task_names(tasks, data)
    asked = TuneOptions(
        target=target,
        pruners=tuple(split_list(pruners)),
        by=by,
        confidence=confidence,
        confirm=confirm,
        eta=eta,
        keeps=DEFAULT_KEEPS if keep is None else tuple(parse_keep(part) for part in split_list(keep)),
        tasks=names,
        model=model,
        limit=limit,
        output=output,
        data=data,
        data_dir=data_dir,
        include_path=include_path,
        on_error=on_error,
        seed=seed,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        num_frames=num_frames,
        workers=workers,
        cache_bytes=cache_mb << 20,
        device=device,
        dtype=dtype,
    )
    check_options(asked)
    import_all(imports)
    refuse_methods(asked.pruners, "all")
    with heavy_imports():
        from vtc.eval.tune.tune_job import run_tune

    if run_tune(asked).winner is None:
        raise typer.Exit(1)  # nothing qualifies
