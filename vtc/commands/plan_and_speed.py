"""``vtc plan`` and ``vtc speed``, reckoned and measured: where a prefill's time goes and what pruning is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Device,
    Dtype,
    Import,
    Overwrite,
    heavy_imports,
    import_all,
    known_configuration,
    known_dtype,
    method_text,
    not_bundled,
    output_file,
    question_folder,
    refuse_methods,
)


def plan(
    model: Annotated[
        str,
        typer.Option(
            callback=known_configuration,
            help="Folder, hub id, config.json, model_type such as qwen2_5_vl, or bundled; no weights.",
        ),
    ],
    image: Annotated[str, typer.Option(help="Size of the picture in pixels, WIDTHxHEIGHT.")] = "1280x960",
    keep: Annotated[str, typer.Option(help="What is kept, comma-separated: 0.25 or 64.")] = "0.25,0.11",
    batch: Annotated[str, typer.Option(help="Requests at once, comma-separated.")] = "1,8,32",
    gpu: Annotated[str, typer.Option(help="h200, h100, a100, l4, or cpu: this machine, measured in seconds.")] = "h100",
    pruners: Annotated[
        str | None,
        typer.Option(help="Methods, comma-separated (default: any one behind the tower whose choice costs nothing)."),
    ] = None,
    text_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the prompt beside the picture (default: a short question's).")
    ] = None,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the answer.")] = 128,
    dtype: Annotated[
        str,
        typer.Option(
            callback=known_dtype, help="float32, bfloat16, float16; auto is float32 on the CPU, else bfloat16."
        ),
    ] = "auto",
    processor: Annotated[
        str | None, typer.Option(help="Folder or hub id with the processor, where --model has none.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
    imports: Import = None,
) -> None:
    """Say what pruning will be worth: tokens, FLOPs, memory and times from the configuration alone, in seconds."""
    from vtc.eval.terminal.option_checks import check_not_empty, picture_size, request_counts
    from vtc.eval.vlm.pruning_settings import parse_keep, split_list
    from vtc.model_sources import find_source

    picture_size(image)
    request_counts(batch)
    import_all(imports)
    check_not_empty("--keep", [parse_keep(part) for part in split_list(keep)], "0.25,64")
    if processor is not None:
        find_source(processor)
    refuse_methods(split_list(pruners or ""))
    from vtc.eval.plan.device_names import check_device

    check_device(gpu)
    from vtc.eval.plan.plan_job import PlanOptions, make_plan
    from vtc.eval.plan.show_plan import as_json as values
    from vtc.eval.plan.show_plan import screen_plan
    from vtc.eval.terminal.console import make_console

    made = make_plan(PlanOptions(model, image, keep, batch, gpu, pruners, text_tokens, answer_tokens, dtype, processor))
    if as_json:
        typer.echo(json.dumps(values(made), indent=1))
    else:
        make_console().print(screen_plan(made))


def speed(
    model: Annotated[
        str | None,
        typer.Argument(
            callback=not_bundled,
            help="Folder or hub id with weights; or a folder with a configuration only, a config.json, or a model type "
            "such as llava: true layer shapes, random weights. The bundled model if left out.",
        ),
    ] = None,
    pruners: Annotated[
        str, typer.Option(help="Methods, comma-separated, with or without parameters; all is every method.")
    ] = "random,uniform,pool,dart,fastv",
    keep: Annotated[str, typer.Option(help="What is kept, comma-separated: 0.25 or 64.")] = "0.25,0.11",
    image: Annotated[str, typer.Option(help="The picture's size in pixels, WIDTHxHEIGHT.")] = "640x480",
    batch: Annotated[int, typer.Option(help="Samples of a batch, all with the same picture and question.")] = 1,
    rounds: Annotated[
        int, typer.Option(help="Measured rounds, behind one that warms up; each has every setting once.")
    ] = 7,
    layers: Annotated[
        int | None,
        typer.Option(help="Decoder layers to measure, on random weights (default: as many as memory holds)."),
    ] = None,
    tower_layers: Annotated[int | None, typer.Option(help="The same of the vision tower's layers.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of your own questions: the first about one picture.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write all figures to this JSON file.")] = None,
    overwrite: Overwrite = False,
    compare: Annotated[Path | None, typer.Option(help="JSON file of an older run: flag what became slower.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Annotated[
        int, typer.Option(min=0, help="Of random weights, the order within rounds, and the bootstrap.")
    ] = 0,
    imports: Import = None,
) -> None:
    """Measure tower, selection, prefill, decoding and memory of MODEL, pruned and not, in rounds of one run.

    Exit code 0: measured. 1: with --compare, something became slower or larger beyond noise. 2: bad input, or an older
    run of another model, setting or machine.
    """
    from vtc.eval.speed.older_run import older_run
    from vtc.eval.speed.options import SpeedOptions
    from vtc.eval.terminal.option_checks import check_not_empty, picture_size
    from vtc.eval.vlm.pruning_settings import parse_keep, split_list

    known_configuration(model)
    question_folder(data)
    if compare is not None:
        older_run(compare)
    if output is not None:
        output_file("--output", output, "speed.json", overwrite, ".json")
    import_all(imports)
    asked = SpeedOptions(
        model=model,
        pruners=[method_text(name) for name in split_list(pruners)],
        keeps=[parse_keep(part) for part in split_list(keep)],
        image=picture_size(image),
        batch=batch,
        rounds=rounds,
        device=device,
        dtype=dtype,
        seed=seed,
        layers=layers,
        tower_layers=tower_layers,
        data=data,
    )
    check_not_empty("--keep", asked.keeps, "0.25,64")
    check_not_empty("--pruners", asked.pruners, "random,dart, or all")
    refuse_methods(asked.pruners, "all")
    with heavy_imports():
        from vtc.eval.speed.speed_job import run_speed
    from vtc.eval.terminal.console import make_console

    result = run_speed(asked, make_console(), output, compare, quiet=as_json)
    if as_json:
        changes = [{**c.__dict__, "ratio": c.ratio._asdict()} for c in result.changes]
        typer.echo(json.dumps({**result.content, "changes": changes}, indent=1))
    if result.regressed:
        raise typer.Exit(1)
