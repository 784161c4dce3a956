"""``vtc check`` holds a model to the contracts: its options and exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated

import typer

from vtc.default_method import METHOD

from .options import Import, cell_of, heavy_imports, import_all, known_configuration


def check(
    model: Annotated[
        str,
        typer.Argument(
            callback=known_configuration,
            help="Hub id (its config.json must be on this machine), folder, config.json, model_type such as llava or "
            "qwen3_vl, or bundled.",
        ),
    ],
    attn: Annotated[
        str | None,
        typer.Option(help="Attention implementations, comma-separated: eager, sdpa, flex, flash (default: all)."),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(help="Where to prune, comma-separated: vision, input, decoder, pipeline (default: all)."),
    ] = None,
    pruner: Annotated[str | None, typer.Option(help="A method or pipeline of yours instead of the stages.")] = None,
    keep: Annotated[str | None, typer.Option(help="What it keeps: 0.25 is a quarter, 3 is 3 tokens.")] = None,
    parts: Annotated[
        list[str] | None,
        typer.Option(
            "--part", help="Module of a family that vtc does not know, such as lm=model.language_model; several times."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens generated on the main prompt.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
    imports: Import = None,
) -> None:
    """Does vtc work with MODEL and the installed transformers? Tells on a small random model of its configuration.

    Exit code 0: all that vtc does not refuse is exact. 1: something is WRONG or failed. 2: bad input. 3: nowhere was
    pruning exact, vtc does not support the model.
    """
    from vtc.eval.check.names import ATTENTIONS, STAGES
    from vtc.eval.vlm.pruning_settings import parse_keep

    if pruner is None and keep is not None:
        pruner = METHOD
    if pruner is not None and stage is not None:
        raise ValueError("--stage does not apply with --pruner, which says itself where it prunes")
    attentions, stages = _chosen("--attn", attn, ATTENTIONS), _chosen("--stage", stage, STAGES)
    modules = _parts(parts)
    import_all(imports)
    cell_of(pruner, keep)
    with heavy_imports():
        from vtc.eval.check.check_job import CheckOptions, run_check
        from vtc.eval.check.console_report import progress_bar, show

    options = CheckOptions(
        model, attentions, stages, pruner, None if keep is None else parse_keep(keep), tokens, modules
    )
    with progress_bar() as progress:
        result = run_check(options, progress)
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=1))
    else:
        show(result)
    raise typer.Exit(result.exit_code)


def _chosen(option: str, given: str | None, known: Iterable[str]) -> list[str]:
    """What an option asks for, all of it if it is not given."""
    from vtc.eval.vlm.pruning_settings import split_list

    chosen = list(known) if given is None else split_list(given)
    odd = [name for name in chosen if name not in known]
    if odd or not chosen:
        raise ValueError(f"{option} {given!r}: allowed are {', '.join(known)}, comma-separated")
    return chosen


def _parts(given: list[str] | None) -> dict[str, str] | None:
    for part in given or ():
        if "=" not in part:
            raise ValueError(f"--part {part!r} must be NAME=PATH, such as lm=model.language_model")
    return dict(part.split("=", 1) for part in given) if given else None
