"""The command line: ``vtc bench``, ``tune``, ``ask``, ``show``, ``horizon``, ``pruners`` and ``recipes``.

Heavy imports happen inside the commands, so that ``vtc --help`` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

NOTHING, BAD_INPUT, INTERRUPTED = 1, 2, 130
_arguments: list[str] = []  # what main was called with

app = typer.Typer(
    help="Visual-token compression for vision-language models: measure it, try it, look at it.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help keeps its words whole on 80 columns
    add_completion=False,
    pretty_exceptions_enable=False,
)

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


def _version(wanted: bool) -> None:
    if wanted:
        from vtc import __version__

        typer.echo(f"vtc {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Visual-token compression for vision-language models: measure it, try it, look at it."""


@app.command()
def bench(
    pruners: Annotated[
        str | None,
        typer.Option(
            help="Methods, comma-separated: names, pipelines such as 'random(layer=2, seed=3)', or all for every one "
            "that can run (default: random,uniform,pool,dart,fastv)."
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="What is kept, comma-separated: 0.25 is a quarter of an image's tokens, 64 is 64 of them (default: "
            "0.5,0.25,0.11,0.05)."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A paper's setting instead: model, pruner and keeps of a recipe (a name, a YAML file, or list), whose "
            "published numbers are shown beside the measured ones."
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks, comma-separated; all if left out. Beside the bundled ones: public benchmarks (pope, mme, gqa, "
            "...), a definition's .yaml, lmms:NAME for a task of lmms-eval."
        ),
    ] = None,
    model: Model = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Questions per task, always the same ones (default: 100 on the bundled model and tasks, else all)."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results; the same command resumes there (default: vtc-bench/<model>-<data>-<hash>)."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of your own instead of the bundled tasks: images.parquet and questions.parquet, or "
            "definitions (.yaml) with their data."
        ),
    ] = None,
    data_dir: DataDir = None,
    include_path: IncludePath = None,
    on_error: OnError = "stop",
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap, and the first one of methods that take one.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each method that takes one, such as random.")] = 3,
    random: Annotated[
        bool,
        typer.Option(help="Always run random too, at the layers where the others choose: what they are compared with."),
    ] = True,
    match: Annotated[
        str, typer.Option(help="Compare methods at the same keep, mean-tokens (per layer) or flops.")
    ] = "keep",
    batch_size: BatchSize = 16,
    max_new_tokens: MaxNewTokens = None,
    num_frames: NumFrames = None,
    workers: Workers = None,
    cache_mb: CacheMB = 2048,
    device: Device = "auto",
    dtype: Dtype = "auto",
    timing: Annotated[bool, typer.Option(help="Measure times and memory.")] = True,
    share_prefix: Annotated[
        bool, typer.Option(help="Answer all questions of an image behind one prefill where the method allows it.")
    ] = True,
    cell: Annotated[
        list[str] | None,
        typer.Option(
            help="Answer this cell of the sweep alone, such as 'random(keep=0.25)'; may be said several times."
        ),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="Answer a part of the questions alone: 2/4 is the second of four.")
    ] = None,
    emit: Annotated[
        Path | None, typer.Option(help="Write the commands of all cells to this YAML file, for a scheduler, and stop.")
    ] = None,
) -> None:
    """Measure what pruning costs in accuracy and gains in compute, against the unpruned model."""
    from vtc.eval.cells import DEFAULT_KEEPS, DEFAULT_PRUNERS, parse_keep, split_list

    if recipe == "list":
        recipes()
        return
    if recipe is not None and (pruners is not None or keep is not None):
        raise ValueError(f"--recipe says itself what is run: leave out {'--keep' if pruners is None else '--pruners'}")
    keeps = DEFAULT_KEEPS if keep is None else tuple(parse_keep(part) for part in split_list(keep))
    if not keeps:
        raise ValueError("--keep is empty: say for example --keep 0.25,64")
    methods = DEFAULT_PRUNERS if pruners is None else tuple(split_list(pruners))
    if not methods:
        raise ValueError("--pruners is empty: say for example --pruners random,dart, or all")
    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit} is out of range: it is the number of questions per task, at least 1")
    _folders(("--data", data), ("--data-dir", data_dir), ("--include-path", include_path))
    from vtc.eval.recipes import load_recipe

    followed = None if recipe is None else load_recipe(recipe)
    from vtc.eval.bench import BenchOptions, run_bench

    run_bench(
        BenchOptions(
            pruners=methods, keeps=keeps, recipe=followed, tasks=split_list(tasks) if tasks else None, model=model,
            data=data, data_dir=data_dir, include_path=include_path, on_error=on_error, limit=limit, output=output,
            seed=seed, seeds=seeds, random=random, match=match, batch_size=batch_size, max_new_tokens=max_new_tokens,
            num_frames=num_frames, device=device, dtype=dtype, timing=5 if timing else 0, share=share_prefix,
            workers=workers, cache_bytes=cache_mb << 20, only=cell, shard=shard, emit=emit,
            arguments=_arguments,
        )
    )  # fmt: skip


@app.command()
def tune(
    target: Annotated[float, typer.Option(help="Share of the unpruned accuracy that has to be kept.")] = 0.98,
    pruners: Annotated[
        str,
        typer.Option(
            help="Methods to choose from, comma-separated: names, pipelines such as 'dart(pivots=16)', or all for "
            "every one that can run."
        ),
    ] = "all",
    keep: Annotated[
        str | None,
        typer.Option(
            help="What may be kept, comma-separated: 0.25 is a quarter of an image's tokens, 64 is 64 of them "
            "(default: 0.5,0.33,0.25,0.2,0.15,0.11,0.07,0.05)."
        ),
    ] = None,
    by: Annotated[
        str, typer.Option(help="What is to be cheap: flops (of the prefill, with the tower), prefill (time) or tokens.")
    ] = "flops",
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, comma-separated, as for vtc bench; all if left out.")
    ] = None,
    model: Model = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Questions per task, always the same ones (default: 150 on the bundled model and tasks, else all)."
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the lower bound that has to stay above the target.")] = 0.95,
    confirm: Annotated[
        float, typer.Option(help="Share of the images that are held out of the search, to confirm what it found.")
    ] = 0.5,
    eta: Annotated[
        float, typer.Option(help="Each rung has this many times fewer settings and more questions than the last.")
    ] = 2.0,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results; the same command resumes there (default: vtc-tune/<model>-<data>-<hash>)."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of your own instead of the bundled tasks.")] = None,
    data_dir: DataDir = None,
    include_path: IncludePath = None,
    on_error: OnError = "stop",
    seed: Annotated[int, typer.Option(help="Of the split, the bootstrap and methods that draw at random.")] = 0,
    batch_size: BatchSize = 16,
    max_new_tokens: MaxNewTokens = None,
    num_frames: NumFrames = None,
    workers: Workers = None,
    cache_mb: CacheMB = 2048,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Find the cheapest setting that keeps a share of the unpruned accuracy, and write it as vtc_config.json.

    Exit code 1 says that nothing qualifies.
    """
    from vtc.eval.cells import parse_keep, split_list
    from vtc.eval.tune.options import DEFAULT_KEEPS, TuneOptions, check_options

    _folders(("--data", data), ("--data-dir", data_dir), ("--include-path", include_path))
    asked = TuneOptions(
        target=target, pruners=tuple(split_list(pruners)), by=by, confidence=confidence, confirm=confirm, eta=eta,
        keeps=DEFAULT_KEEPS if keep is None else tuple(parse_keep(part) for part in split_list(keep)),
        tasks=split_list(tasks) if tasks else None, model=model, limit=limit, output=output, data=data,
        data_dir=data_dir, include_path=include_path, on_error=on_error, seed=seed, batch_size=batch_size,
        max_new_tokens=max_new_tokens, num_frames=num_frames, workers=workers, cache_bytes=cache_mb << 20,
        device=device, dtype=dtype,
    )  # fmt: skip
    check_options(asked)
    from vtc.eval.tune.run import run_tune

    if run_tune(asked).winner is None:
        raise typer.Exit(NOTHING)


@app.command()
def ask(
    image: Annotated[Path, typer.Option(help="The picture.")],
    question: Annotated[str, typer.Option(help="The question.")],
    pruner: Annotated[str | None, typer.Option(help="Method or pipeline; unpruned if left out.")] = None,
    keep: Annotated[str | None, typer.Option(help="What is kept: 0.25 or 64.")] = None,
    model: Model = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Answer one question about one picture."""
    from vtc.eval.images import open_image

    picture = open_image(image)
    cell = _cell(pruner, keep)
    from vtc.eval.ask import ask as run
    from vtc.eval.ask import saved_cell
    from vtc.eval.loading import load_model

    cell = cell or saved_cell(model)
    reply = run(load_model(model, device, dtype), cell, picture, question, max_new_tokens)
    typer.echo(reply.text)
    share = 100 * reply.kept / reply.total
    typer.echo(f"[{cell.spec}: {reply.kept} of {reply.total} visual tokens ({share:.1f}%), {reply.seconds:.2f} s]")


@app.command()
def show(
    pruner: Annotated[
        list[str], typer.Option(help="Method or pipeline; give it several times to see them side by side.")
    ],
    keep: Annotated[str | None, typer.Option(help="What is kept: 0.25 or 64.")] = None,
    image: Annotated[Path | None, typer.Option(help="The picture; one of the bundled ones if left out.")] = None,
    question: Annotated[str | None, typer.Option(help="Some methods read it.")] = None,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("kept.png"),
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Draw the tokens that a method keeps over the picture."""
    from vtc.eval.images import open_image

    if out.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png, got {out}")
    if not out.resolve().parent.is_dir():
        raise ValueError(f"--out: no such folder: {out.resolve().parent}")
    cells = [cell for text in pruner if (cell := _cell(text, keep))]
    picture = open_image(image) if image is not None else None
    from vtc.eval.loading import load_model
    from vtc.eval.show import example, show_kept

    if picture is None:
        picture, asked = example()
        question = question or asked
    found = show_kept(load_model(model, device, dtype), cells, picture, question or "What is in the image?", out)
    for cell, kept in zip(cells, found, strict=True):
        typer.echo(f"{cell.spec}: {kept.kept} of {kept.total} visual tokens{kept.where}; answer: {kept.answer}")
    typer.echo(f"written: {out}")


@app.command()
def horizon(
    window: Annotated[int, typer.Option(help="Side of the windows that are kept one at a time, in tokens.")] = 2,
    threshold: Annotated[
        float, typer.Option(help="A layer has no information when no window moves the answer's probability by more.")
    ] = 0.02,
    search: Annotated[
        str | None, typer.Option(help="'vtw': only search the layer at which all visual tokens may leave.")
    ] = None,
    eta: Annotated[float, typer.Option(help="KL divergence that --search vtw allows.")] = 0.003,
    tasks: Annotated[str | None, typer.Option(help="Tasks, comma-separated; all if left out.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Questions per task (default: 5 on the bundled model and tasks, else all).")
    ] = None,
    start: Annotated[int | None, typer.Option(help="First layer to look at.")] = None,
    model: Model = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with images.parquet and questions.parquet of your own.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results; the same command resumes there (default: vtc-horizon/<model>-<data>-<hash>)."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows per batch.")] = 64,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Measure what visual tokens still tell at each decoder layer, and from which layer on nothing."""
    _folders(("--data", data))
    from vtc.eval.cells import split_list
    from vtc.eval.horizon_run import HorizonOptions, run_horizon

    run_horizon(
        HorizonOptions(
            model=model, data=data, tasks=split_list(tasks) if tasks else None, limit=limit, window=window,
            threshold=threshold, search=search, eta=eta, start=start, output=output, batch_size=batch_size,
            device=device, dtype=dtype,
        )
    )  # fmt: skip


@app.command()
def pruners(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    pattern: Annotated[
        str, typer.Argument(help="Shell-style pattern of names, or methods with parameters: 'dart(official=True)'.")
    ] = "*",
) -> None:
    """List the methods: where they prune, what they read, their paper, the families they run on."""
    from vtc.eval.listing import describe, listing

    rows = describe(pattern)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    from vtc.eval.console import make_console

    make_console().print(listing(rows))


@app.command()
def recipes(as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
    """List the papers' settings for vtc bench --recipe: model, pruner, what is kept, published tables."""
    from vtc.eval.recipes import list_recipes, load_recipe, recipe_table

    found = [load_recipe(name) for name in list_recipes()]
    if as_json:
        from dataclasses import asdict

        typer.echo(json.dumps([asdict(recipe) for recipe in found], indent=1))
        return
    from vtc.eval.console import make_console

    make_console().print(recipe_table(found))


def _folders(*given: tuple[str, Path | None]) -> None:
    """Refuse options that name no folder."""
    for option, folder in given:
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{option}: no such folder: {folder}")


def _cell(pruner: str | None, keep: str | None) -> Any:
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


def _fail(message: object, code: int = BAD_INPUT) -> NoReturn:
    """One line on stderr and out."""
    print(f"vtc: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(code)


def main(args: list[str] | None = None) -> None:
    """Entry point of the ``vtc`` command: bad input is one line on stderr and exit code 2, Ctrl-C is 130.

    With ``VTC_TRACEBACK=1`` in the environment the whole traceback is shown instead.
    """
    # threads that wait should sleep: spinning costs several times the work itself where cores are shared
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    global _arguments
    _arguments = list(sys.argv[1:] if args is None else args)
    code: Any = None
    try:
        code = app(args, standalone_mode=False)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (ValueError, TypeError, NotImplementedError, OSError) as error:
        if os.environ.get("VTC_TRACEBACK"):
            raise
        _fail(error)
    except Exception as error:
        # the parser's own errors (typer brings its own copy of click's classes)
        if type(error).__name__ == "Abort":
            code = INTERRUPTED
        elif hasattr(error, "format_message"):
            _fail(f"{error.format_message()} (--help lists the options)")
        else:
            raise
    if code == INTERRUPTED:
        _fail("interrupted; what vtc has finished is kept, and the same command goes on from there", INTERRUPTED)
    raise SystemExit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
