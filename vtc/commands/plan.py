"""``vtc plan`` says what pruning will be worth before anything is downloaded: its options."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .options import Import, import_all, refuse_methods


def plan(
    model: Annotated[
        str, typer.Option(help="Folder, hub id, config.json, model_type such as qwen2_5_vl, or bundled; no weights.")
    ],
    image: Annotated[str, typer.Option(help="Size of the picture in pixels, WIDTHxHEIGHT.")] = "1280x960",
    keep: Annotated[str, typer.Option(help="What is kept, comma-separated: 0.25 or 64.")] = "0.25,0.11",
    batch: Annotated[str, typer.Option(help="Requests at once, comma-separated.")] = "1,8,32",
    gpu: Annotated[str, typer.Option(help="h200, h100, a100, l4, or cpu: this machine, measured in seconds.")] = "h100",
    pruner: Annotated[
        str | None,
        typer.Option(help="Methods, comma-separated (default: any one behind the tower whose choice costs nothing)."),
    ] = None,
    text_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the prompt beside the picture (default: a short question's).")
    ] = None,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the answer.")] = 128,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16; auto is float32 on the CPU, else bfloat16.")
    ] = "auto",
    processor: Annotated[
        str | None, typer.Option(help="Folder or hub id with the processor, where --model has none.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
    imports: Import = None,
) -> None:
    """Say what pruning will be worth: tokens, FLOPs, memory and times from the configuration alone, in seconds."""
    from vtc.eval.vlm.pruning_settings import parse_keep, split_list

    import_all(imports)
    for part in split_list(keep):
        parse_keep(part)
    refuse_methods(split_list(pruner or ""))
    from vtc.eval.plan.find_device import check_device

    check_device(gpu)
    from vtc.eval.plan.plan_job import PlanOptions, make_plan
    from vtc.eval.plan.show_plan import as_json as values
    from vtc.eval.plan.show_plan import screen_plan
    from vtc.eval.terminal.console import make_console

    made = make_plan(PlanOptions(model, image, keep, batch, gpu, pruner, text_tokens, answer_tokens, dtype, processor))
    if as_json:
        typer.echo(json.dumps(values(made), indent=1))
    else:
        make_console().print(screen_plan(made))
