"""``vtc load-test`` measures what pruning is worth on a server: its options."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Dtype, output_folder, question_folder, refuse_methods

Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="A server with a setting, once for each: 'NAME URL [model=M] [resize=0.25] [pruner=dart keep=64] "
        "[limit=v,s,f] [key=VARIABLE] [body={...}]'. body is added to every request; resize makes pictures smaller.",
    ),
]
File = Annotated[
    Path | None, typer.Option("--targets", help="YAML file with `targets`, a list, and `defaults` for all of them.")
]
Measure = Annotated[
    str | None,
    typer.Option(help="Folder or hub id of the served model: v, s and f of the limit are measured on it here, first."),
]


def load_test(
    target: Targets = None,
    targets: File = None,
    baseline: Annotated[str | None, typer.Option(help="Target that ratios are to (default: the first).")] = None,
    concurrency: Annotated[str, typer.Option(help="Requests in flight, comma-separated.")] = "1,8,32",
    rounds: Annotated[
        int, typer.Option(help="Rounds; in each, every target has a turn at every concurrency. More narrow intervals.")
    ] = 5,
    requests: Annotated[int, typer.Option(help="Requests of a turn; at least four times the concurrency.")] = 32,
    block_seconds: Annotated[float, typer.Option(help="A turn begins no more requests after this time.")] = 60.0,
    request_seconds: Annotated[float, typer.Option(help="A request is given up after this time.")] = 120.0,
    minutes: Annotated[float, typer.Option(help="No more turns begin after this time.")] = 60.0,
    output_tokens: Annotated[
        int, typer.Option(help="Tokens of an answer: exactly on vLLM and SGLang, at most elsewhere. 1 is the prefill.")
    ] = 16,
    pictures: Annotated[int, typer.Option(help="Pictures of a request.")] = 1,
    video: Annotated[
        int | None, typer.Option(help="Show a clip of so many frames instead, made of a picture (vLLM's video_url).")
    ] = None,
    same_pictures: Annotated[
        bool, typer.Option("--same-pictures", help="All requests show the same: a server's caches are hit.")
    ] = False,
    picture_side: Annotated[
        int | None, typer.Option(help="Make pictures and frames squares of this side first (default: as they are).")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of your own questions instead of the bundled ones.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the results; the same command resumes there (default: vtc-load-test/<hash>)."),
    ] = None,
    measure_limit: Measure = None,
    remote: Annotated[
        bool, typer.Option("--remote", help="Servers may be on other machines: only your own, it is a lot of load.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of turns and the bootstrap.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Load OpenAI-compatible servers with pictures and compare their settings, in turns of one run.

    Exit code 0: measured. 2: bad input, or a server that is not there or refuses.
    """
    from vtc.config_json import refuse_model
    from vtc.eval.load.options import LoadOptions
    from vtc.eval.load.targets import read_targets

    question_folder(data)
    if measure_limit is not None:
        refuse_model(measure_limit)
    output_folder(output)
    try:
        levels = tuple(int(part) for part in concurrency.split(","))
    except ValueError:
        raise ValueError(f"--concurrency must be ints, separated by commas, e.g. 1,8,32; got {concurrency!r}") from None
    asked = LoadOptions(
        targets=read_targets(targets, target or []),
        baseline=baseline,
        concurrencies=tuple(dict.fromkeys(levels)),
        rounds=rounds,
        requests=requests,
        block_seconds=block_seconds,
        request_seconds=request_seconds,
        minutes=minutes,
        output_tokens=output_tokens,
        pictures=pictures,
        video=video,
        same_pictures=same_pictures,
        picture_side=picture_side,
        data=data,
        output=output,
        measure_limit=measure_limit,
        remote=remote,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    for text in (one.pruner for one in asked.targets if one.pruner is not None):
        with suppress(FileNotFoundError):  # a method's files lie where the server runs
            refuse_methods([text])
    from vtc.bundled_files import bundled_data
    from vtc.eval.load.load_job import run_load_test
    from vtc.eval.tasks.reading.load import load_tasks
    from vtc.eval.terminal.console import make_console
    from vtc.eval.vlm.loading import config_hash

    folder = output or Path("vtc-load-test") / config_hash(asked.identity)
    run_load_test(asked, folder, load_tasks(data or bundled_data()), make_console())
