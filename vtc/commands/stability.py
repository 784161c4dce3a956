"""``vtc stability`` says how much of a choice is rounding: its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import Import, import_all, refuse_methods


def stability(
    pruners: Annotated[
        str, typer.Option(help="Methods, comma-separated, with or without parameters; all registered ones.")
    ] = "all",
    tokens: Annotated[str, typer.Option(help="Visual tokens of a picture, comma-separated.")] = "576,2880",
    keep: Annotated[str, typer.Option(help="What is kept: 0.25 or 64.")] = "0.11",
    draws: Annotated[int, typer.Option(min=1, help="Draws per method and size; every second one is a video.")] = 6,
    output: Annotated[Path | None, typer.Option(help="Write the table to this Markdown file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    imports: Import = None,
) -> None:
    """Measure how much of each method's choice depends on rounding, without a model.

    The exit code is 1 if a method keeps less than it promises, or can't be measured.
    """
    from vtc.eval.terminal.option_checks import check_not_empty, check_output_file, token_counts
    from vtc.eval.vlm.pruning_settings import parse_keep, split_list

    import_all(imports)
    kept = parse_keep(keep)
    check_not_empty("--pruners", split_list(pruners), "random,dart, or all")
    refuse_methods(split_list(pruners), "all")
    token_counts(tokens)
    if output is not None:
        check_output_file("--output", output)
    from vtc.eval.stability.stability_job import StabilityOptions, as_rows, run_stability, screen_table, write_page
    from vtc.eval.terminal.console import make_console

    options = StabilityOptions(pruners, tokens, kept, draws)
    console = make_console()
    rows = run_stability(options, console, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(as_rows(rows), indent=1))
    else:
        console.print(screen_table(rows))
    if output is not None:
        write_page(output, rows, options)
        typer.echo(f"written: {output}", err=as_json)
    if any(row.failed or row.broken for row in rows):
        raise typer.Exit(1)
