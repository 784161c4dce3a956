"""Options that several commands share, and their checks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[
    str | None, typer.Option(help="Folder or hub id of a transformers VLM; the bundled model if left out.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16, float16; auto is float32 on the CPU, else the checkpoint's.")
]

DataDir = Annotated[
    Path | None, typer.Option(help="Folder with local copies of the public benchmarks (default: the hub).")
]
IncludePath = Annotated[Path | None, typer.Option(help="Folder with more tasks for lmms:NAME.")]
OnError = Annotated[
    str, typer.Option(help="stop at a row or an image that can't be used, or skip it; skipped ones are listed.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Questions per batch.")]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer (default: as the task says, else 16).")]
NumFrames = Annotated[int | None, typer.Option(min=1, help="Frames of a video (default: as the task says, else 8).")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes (default: one per core for a small model on the CPU, else 1).")
]
CacheMB = Annotated[int, typer.Option(min=0, help="Memory for vision features that are used again.")]


def folders(*given: tuple[str, Path | None]) -> None:
    """Refuse options that name no folder."""
    for option, folder in given:
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{option}: no such folder: {folder}")


def check_png(out: Path) -> None:
    """Refuse an --out that is no PNG in a folder that is there."""
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png, got {out}")
    if not out.resolve().parent.is_dir():
        raise ValueError(f"--out: no such folder: {out.resolve().parent}")


def was_given(context: typer.Context, name: str) -> bool:
    """Whether an option was said on the command line, be it its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_given(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Refuse options that have no meaning here."""
    for name in names:
        if was_given(context, name):
            raise ValueError(f"--{name.replace('_', '-')} does not apply: {why}")


def cell_of(pruner: str | None, keep: str | None) -> Any:
    """The setting that --pruner and --keep ask for; None without --pruner."""
    from vtc.eval.cells import make_cell, needs_keep, parse_keep

    if pruner is None:
        if keep is not None:
            raise ValueError("--keep needs --pruner; vtc pruners lists the methods")
        return None
    from vtc.spec import parse

    value = parse_keep(keep) if keep is not None else None
    if value is None and any(map(needs_keep, parse(pruner))):
        raise ValueError(f"{pruner!r} needs --keep, for example --keep 0.25 or --keep 64")
    return make_cell(pruner, value)
