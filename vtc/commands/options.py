"""Options that several commands share, and their checks."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from vtc.default_method import METHOD


def not_bundled(model: str | None) -> str | None:
    """The bundled model is what is taken where none is named, also where it is named."""
    return None if model == "bundled" else model


def known_model(model: str | None) -> str | None:
    """The same, and a name that can be no model is refused before torch is imported."""
    from vtc.config_json import refuse_model

    if model is not None:
        refuse_model(model)
    return not_bundled(model)


def known_configuration(model: str | None) -> str | None:
    """The same where a configuration is enough: a file too, or a model type, which transformers alone knows."""
    from vtc.config_json import refuse_configuration

    if model is not None:
        refuse_configuration(model)
    return model


def known_dtype(dtype: str) -> str:
    """A dtype's name that is one."""
    from vtc.eval.terminal.option_checks import DTYPES, check_choice

    check_choice("--dtype", dtype, DTYPES)
    return dtype


def known_device(device: str) -> str:
    """A device's name that may be one."""
    from vtc.eval.terminal.option_checks import check_device_name

    check_device_name(device)
    return device


def readable_files(files: list[Path] | None) -> list[Path] | None:
    """What --import names; what can't be Python is refused before anything is imported."""
    if files:
        from vtc.pruners.plugins import refuse_source

        for file in files:
            refuse_source(str(file))
    return files


Model = Annotated[
    str | None,
    typer.Option(callback=known_model, help="Folder or hub id of a transformers VLM; the bundled model if left out."),
]
Keep = Annotated[str | None, typer.Option(help=f"What is kept: 0.25 or 64; alone, by {METHOD}.")]
Import = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        callback=readable_files,
        help="Python file with methods of your own (docs/own-methods.md); may be said several times.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")]
Device = Annotated[
    str, typer.Option(callback=known_device, help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")
]
Dtype = Annotated[
    str,
    typer.Option(
        callback=known_dtype, help="float32, bfloat16, float16; auto is float32 on the CPU, else the checkpoint's."
    ),
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


def output_folder(output: Path | None) -> None:
    """Refuse an --output that can't be a folder."""
    from vtc.eval.terminal.option_checks import check_output_folder

    check_output_folder("--output", output)


def question_folder(data: Path | None, tasks: Sequence[str] | None = None) -> None:
    """Refuse a --data that holds no evaluation set, or not these tasks."""
    folders(("--data", data))
    if data is not None:
        from vtc.eval.tasks.reading.task_names import refuse_folder

        refuse_folder(data, tasks)


def task_names(tasks: str | None, data: Path | None) -> list[str] | None:
    """What --tasks names; those that are not in --data, or mean nothing without it, are refused."""
    from vtc.eval.sweep.asked_questions import refuse_tasks

    names = split_tasks(tasks)
    question_folder(data, names)
    if names and data is None:
        refuse_tasks(names)
    return names


def split_tasks(tasks: str | None) -> list[str] | None:
    """The names of --tasks; None, which is all, where it is left out."""
    from vtc.eval.terminal.option_checks import check_not_empty
    from vtc.eval.vlm.pruning_settings import split_list

    if tasks is None:
        return None
    names = split_list(tasks)
    check_not_empty("--tasks", names, "color, or leave it out for all")
    return names


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Without the garbage collector, which costs a seventh of importing torch and transformers and frees nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def import_all(files: list[Path] | None) -> None:
    """Import what --import names, so that its methods are known."""
    if files:
        from vtc.pruners.registry import import_methods

        for file in files:
            import_methods(file)


def output_file(option: str, given: Path | None, usual: str, overwrite: bool, suffix: str | None = ".png") -> Path:
    """The file to write: as asked for, else `usual` with a number if that one is there; never one that is there.

    Raises
    ------
    ValueError
        If it is of another kind, its folder is not there, or it is there and may not be replaced.
    """
    from vtc.eval.terminal.option_checks import check_output_file

    out = Path(usual) if given is None else given
    if suffix is not None and out.suffix.lower() != suffix:
        raise ValueError(f"{option} must end in {suffix}, got {out}")
    check_output_file(option, out)
    if overwrite or not out.exists():
        return out
    if given is not None:
        raise ValueError(f"{option}: {out} is there already; name another file, or say --overwrite to replace it")
    return next(free for n in itertools.count(2) if not (free := out.with_stem(f"{out.stem}-{n}")).exists())


def was_given(context: typer.Context, name: str) -> bool:
    """Whether an option was said on the command line, be it its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_given(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Refuse options that have no meaning here."""
    for name in names:
        if was_given(context, name):
            raise ValueError(f"--{name.replace('_', '-')} does not apply: {why}")


def method_text(pruner: str) -> str:
    """A method as --pruner names it: by its text, or by a folder or file with the setting that ``vtc tune`` saved."""
    from vtc.config import find_config
    from vtc.eval.vlm.pruning_settings import saved_setting

    path = Path(pruner).expanduser()
    if not path.is_dir() and not (path.suffix == ".json" and path.is_file()):
        return pruner
    found = find_config(path)  # none: a folder that happens to be called as a method is
    return pruner if found is None else saved_setting(found)


def refuse_methods(texts: Iterable[str], *not_methods: str) -> None:
    """Refuse methods that nobody knows, before torch is imported; `not_methods` are words that stand for others."""
    from vtc.pipeline_text import refuse_text

    for text in texts:
        if text not in not_methods:
            refuse_text(text)


def cell_of(pruner: str | None, keep: str | None, model: str | None = None) -> Any:
    """The setting that --pruner and --keep ask for, --keep alone the default method; None without both.

    Raises
    ------
    ValueError
        Also for --keep alone where `model` comes with a saved setting.
    """
    from vtc.eval.vlm.pruning_settings import make_cell, needs_keep, parse_keep

    if pruner is None and keep is None:
        return None
    if pruner is None and model is not None:
        _refuse_saved(model)
    from vtc.pipeline_text import parse, refuse_text

    pruner, value = METHOD if pruner is None else method_text(pruner), parse_keep(keep) if keep is not None else None
    pipeline = refuse_text(pruner, value)
    if value is None and any(map(needs_keep, parse(pruner) if pipeline is None else pipeline)):
        raise ValueError(f"{pruner!r} needs --keep, for example --keep 0.25 or --keep 64")
    return make_cell(pruner, value)


def _refuse_saved(model: str) -> None:
    from vtc.config import find_config
    from vtc.eval.vlm.pruning_settings import saved_setting
    from vtc.model_sources import find_source

    found = find_config(find_source(model))
    if found is not None:
        raise ValueError(f"--keep needs --pruner here, for {model} comes with a setting: {saved_setting(found)}")
