"""``vtc pruners`` lists the methods, ``vtc recipes`` the papers' settings."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .options import Import, import_all, known_configuration, refuse_methods


def pruners(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    pattern: Annotated[
        str, typer.Argument(help="Shell-style pattern of names, or methods with parameters: 'dart(official=True)'.")
    ] = "*",
    model: Annotated[
        str | None,
        typer.Option(
            callback=known_configuration,
            help="Which of them run on this model, and why the others don't; MODEL as for vtc check.",
        ),
    ] = None,
    imports: Import = None,
) -> None:
    """List the methods: where they prune, what they read, their paper, the families they run on."""
    import_all(imports)
    if "(" in pattern or "+" in pattern:
        refuse_methods([pattern])
    if model is not None:
        _on_model(model, pattern, as_json)
        return
    from vtc.eval.reports.method_list import describe, listing

    rows = describe(pattern)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    from vtc.eval.terminal.console import make_console

    make_console().print(listing(rows))


def _on_model(model: str, pattern: str, as_json: bool) -> None:
    from vtc.eval.check import methods_on_model
    from vtc.eval.terminal.console import make_console

    found = methods_on_model.methods_on(model, pattern)
    if as_json:
        typer.echo(json.dumps(methods_on_model.as_json(found), indent=1))
    else:
        make_console().print(methods_on_model.table_of(model, found))


def recipes(as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
    """List the papers' settings for vtc bench --recipe: model, pruner, what is kept, published tables."""
    from vtc.eval.sweep.paper_recipes import list_recipes, load_recipe, recipe_table

    found = [load_recipe(name) for name in list_recipes()]
    if as_json:
        from dataclasses import asdict

        typer.echo(json.dumps([asdict(recipe) for recipe in found], indent=1))
        return
    from vtc.eval.terminal.console import make_console

    make_console().print(recipe_table(found))
