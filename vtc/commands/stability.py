"""``vtc stability`` says how much of a choice is rounding: its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Import, import_all, known_model, refuse_methods

TOKENS = "576,2880"


def stability(
    pruners: Annotated[
        str, typer.Option(help="Methods, comma-separated, with or without parameters; all registered ones.")
    ] = "all",
    tokens: Annotated[
        str | None, typer.Option(help="Visual tokens of a made-up picture, comma-separated (default: 576,2880).")
    ] = None,
    keep: Annotated[str, typer.Option(help="What is kept: 0.25 or 64.")] = "0.11",
    draws: Annotated[
        int, typer.Option(min=1, help="Draws per method and size; every second one is a video. With --model: pictures.")
    ] = 6,
    model: Annotated[
        str | None, typer.Option(help="Choices inside this model (a folder, a hub id, bundled), in three precisions.")
    ] = None,
    device: Device = "auto",
    output: Annotated[Path | None, typer.Option(help="Write the table to this Markdown file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    imports: Import = None,
) -> None:
    """Measure how much of each method's choice depends on rounding, on made-up tokens or inside a model.

    The exit code is 1 if a method keeps less than it promises, or can't be measured.
    """
    from vtc.eval.terminal.option_checks import check_not_empty, check_output_file, token_counts
    from vtc.eval.vlm.pruning_settings import parse_keep, split_list

    import_all(imports)
    kept = parse_keep(keep)
    check_not_empty("--pruners", split_list(pruners), "random,dart, or all")
    refuse_methods(split_list(pruners), "all")
    if model is None:
        token_counts(tokens := TOKENS if tokens is None else tokens)
    elif tokens is not None:
        raise ValueError("--tokens makes up pictures; those that --model is shown have as many tokens as they have")
    name = known_model(model)
    if output is not None:
        check_output_file("--output", output)
    from vtc.eval.stability.in_a_model import Subject
    from vtc.eval.stability.stability_job import StabilityOptions, as_rows, run_stability, screen_table, write_page
    from vtc.eval.terminal.console import make_console

    subject = None if model is None else Subject(name, device, draws)
    options = StabilityOptions(pruners, tokens or TOKENS, kept, draws, subject)
    console = make_console()
    rows = run_stability(options, console, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(as_rows(rows), indent=1))
    else:
        console.print(screen_table(rows, options.questions))
    if output is not None:
        write_page(output, rows, options)
        typer.echo(f"written: {output}", err=as_json)
    left_out = subject is not None and pruners == "all"  # not every method runs on every model
    if any((row.failed and not left_out) or row.broken for row in rows):
        raise typer.Exit(1)
