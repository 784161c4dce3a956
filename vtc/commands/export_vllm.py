"""``vtc export-vllm`` writes what vLLM is to be started with: its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Import, import_all, method_text, refuse_methods


def export_vllm(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; made if it is not there.")],
    model: Annotated[str, typer.Option(help="Folder or hub id of the model.")],
    pruner: Annotated[str, typer.Option(help="Method of the input stage, pipeline of them, or folder of `vtc tune`.")],
    keep: Annotated[str | None, typer.Option(help="What it keeps: 0.25 is a quarter, 64 is 64 tokens.")] = None,
    choices: Annotated[
        list[str] | None,
        typer.Option("--choice", help="Another method that a request may ask for, by this text; several times."),
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy a folder's files instead of linking them.")] = False,
    imports: Import = None,
) -> None:
    """Write a model for vLLM that prunes its pictures, and print the command that serves it.

    Of a folder the files are linked into DIR, beside a config.json with our architecture and settings; of a hub id DIR
    gets what --hf-overrides needs. The server needs vllm 0.32 or 0.33 and vtc (docs/vllm.md).
    """
    from vtc.config_json import refuse_model
    from vtc.eval.terminal.option_checks import check_output_folder
    from vtc.eval.vlm.pruning_settings import parse_keep
    from vtc.model_sources import find_source

    kept = None if keep is None else parse_keep(keep)
    refuse_model(model)
    source = find_source(model)
    import_all(imports)
    method = method_text(pruner)
    refuse_methods([method, *(choices or ())])
    check_output_folder("DIR", folder)
    from vtc.integrations.vllm.export import export, settings_of

    settings = settings_of(
        method,
        kept,
        choices or (),
        [str(path.resolve()) if path.is_file() else str(path) for path in imports or ()],
    )
    done = export(folder, source, _config(source), settings, copy)
    typer.echo(f"written: {folder}", err=True)
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(done.command)


def _config(source: str) -> dict[str, Any]:
    """A model's ``config.json`` as it is written: ours is that with two entries more."""
    path = Path(source) / "config.json"
    if not path.is_file():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(source, "config.json"))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
