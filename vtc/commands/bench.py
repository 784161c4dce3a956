"""``vtc bench`` measures methods on tasks: its options, and which job they go to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    BatchSize,
    CacheMB,
    DataDir,
    Device,
    Dtype,
    Import,
    IncludePath,
    MaxNewTokens,
    NumFrames,
    OnError,
    Workers,
    folders,
    heavy_imports,
    import_all,
    known_model,
    not_bundled,
    output_folder,
    refuse_given,
    refuse_methods,
    task_names,
    was_given,
)
from .pruners_and_recipes import recipes

if TYPE_CHECKING:
    from vtc.eval.sweep.options import BenchOptions

# options about questions, answers and a language model's work
NOT_OF_CLASSIFIERS = (
    "recipe",
    "tasks",
    "data_dir",
    "include_path",
    "max_new_tokens",
    "num_frames",
    "workers",
    "cache_mb",
    "share_prefix",
    "cell",
    "shard",
    "emit",
)


Pruners = Annotated[
    str | None,
    typer.Option(
        help="Methods, comma-separated: names, pipelines such as 'random(layer=2, seed=3)', or all for every one "
        "that can run (default: downsample,random,uniform,pool,dart,fastv). downsample is the stock model on smaller "
        "pictures."
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        help="What is kept, comma-separated: 0.25 is a quarter of an image's tokens, 64 is 64 of them (default: "
        "0.5,0.25,0.11,0.05)."
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        help="A paper's setting instead: model, pruner and keeps of a recipe (a name, a YAML file, or list), whose "
        "published numbers are shown beside the measured ones."
    ),
]
Tasks = Annotated[
    str | None,
    typer.Option(
        help="Tasks, comma-separated; all if left out. Beside the bundled ones: public benchmarks (pope, mme, gqa, "
        "...), a definition's .yaml, lmms:NAME for a task of lmms-eval."
    ),
]
AnyModel = Annotated[
    str | None,
    typer.Option(
        callback=not_bundled,
        help="Folder or hub id of a transformers VLM; the bundled model if left out. A classifier: timm:NAME, "
        "timm:NAME@WEIGHTS, timm:FOLDER, timm:digits (bundled), or open_clip:ARCH@WEIGHTS (zero-shot).",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        help="Questions per task, always the same ones (default: 100 on the bundled model and tasks, else all)."
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the results; the same command resumes there (default: vtc-bench/<model>-<data>-<hash>)."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder of your own instead of the bundled tasks: images.parquet and questions.parquet, or "
        "definitions (.yaml) with their data. Of a classifier: a folder of images per class, or .parquet with "
        "image and label."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the bootstrap, and the first one of methods that take one.")]
Seeds = Annotated[int, typer.Option(min=1, help="Seeds of each method that takes one, such as random.")]
AddRandom = Annotated[
    bool,
    typer.Option(help="Always run random too, at the layers where the others choose: what they are compared with."),
]
Match = Annotated[str, typer.Option(help="Compare methods at the same keep, mean-tokens (per layer) or flops.")]
Timing = Annotated[bool, typer.Option(help="Measure times and memory.")]
Second = Annotated[
    int,
    typer.Option(
        help="Pictures about which a second question is asked on the cache that the first one was pruned for (0: none)."
    ),
]
SharePrefix = Annotated[
    bool, typer.Option(help="Answer all questions of an image behind one prefill where the method allows it.")
]
Cells = Annotated[
    list[str] | None,
    typer.Option(help="Answer this cell of the sweep alone, such as 'random(keep=0.25)'; may be said several times."),
]
Shard = Annotated[str | None, typer.Option(help="Answer a part of the questions alone: 2/4 is the second of four.")]
Emit = Annotated[
    Path | None, typer.Option(help="Write the commands of all cells to this YAML file, for a scheduler, and stop.")
]


def bench(
    context: typer.Context,
    pruners: Pruners = None,
    keep: Keep = None,
    recipe: Recipe = None,
    tasks: Tasks = None,
    model: AnyModel = None,
    imports: Import = None,
    limit: Limit = None,
    output: Output = None,
    data: Data = None,
    data_dir: DataDir = None,
    include_path: IncludePath = None,
    on_error: OnError = "stop",
    seed: Seed = 0,
    seeds: Seeds = 3,
    random: AddRandom = True,
    match: Match = "keep",
    batch_size: BatchSize = 16,
    max_new_tokens: MaxNewTokens = None,
    num_frames: NumFrames = None,
    workers: Workers = None,
    cache_mb: CacheMB = 2048,
    device: Device = "auto",
    dtype: Dtype = "auto",
    timing: Timing = True,
    second: Second = 40,
    share_prefix: SharePrefix = True,
    cell: Cells = None,
    shard: Shard = None,
    emit: Emit = None,
) -> None:
    """Measure what pruning costs in accuracy and gains in compute, against the unpruned model."""
    from vtc.eval.classify import is_classifier

    if recipe == "list":
        recipes()
        return
    classifier = model if is_classifier(model) else None
    if classifier is None:
        known_model(model)
    else:
        refuse_given(context, NOT_OF_CLASSIFIERS, f"--model {classifier} is a classifier")
    methods, keeps = _settings(pruners, keep, recipe)
    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit} is out of range: it is the number of questions per task, at least 1")
    folders(("--data", data), ("--data-dir", data_dir), ("--include-path", include_path))
    output_folder(output)
    import_all(imports)
    from vtc.eval.vlm.pruning_settings import is_downsample

    refuse_methods((m for m in (*methods, *(cell or ())) if not is_downsample(m)), "all", "unpruned", "none")
    from vtc.eval.sweep.options import BenchOptions, check_options
    from vtc.eval.sweep.paper_recipes import load_recipe

    names = None if classifier is not None else task_names(tasks, data)
    asked = BenchOptions(
        pruners=methods,
        keeps=keeps,
        recipe=None if recipe is None else load_recipe(recipe),
        tasks=names,
        model=model,
        data=data,
        data_dir=data_dir,
        include_path=include_path,
        on_error=on_error,
        limit=limit,
        output=output,
        seed=seed,
        seeds=seeds,
        random=random,
        match=match,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        num_frames=num_frames,
        device=device,
        dtype=dtype,
        timing=5 if timing else 0,
        second=second,
        share=share_prefix,
        workers=workers,
        cache_bytes=cache_mb << 20,
        only=cell,
        shard=shard,
        emit=emit,
        arguments=context.obj,
    )
    check_options(asked)
    if classifier is not None:
        from vtc.eval.classify.sources import check_source

        check_source(classifier, data)
        _bench_classifier(context, classifier, asked)
        return
    with heavy_imports():
        from vtc.eval.bench import run_bench

    run_bench(asked)


def _settings(pruners: str | None, keep: str | None, recipe: str | None) -> tuple[Sequence[str], Sequence[int | float]]:
    """The methods and keeps that are asked for."""
    from vtc.eval.terminal.option_checks import check_not_empty
    from vtc.eval.vlm.pruning_settings import DEFAULT_KEEPS, DEFAULT_PRUNERS, parse_keep, split_list

    if recipe is not None and (pruners is not None or keep is not None):
        raise ValueError(f"--recipe says itself what is run: leave out {'--keep' if pruners is None else '--pruners'}")
    keeps = DEFAULT_KEEPS if keep is None else tuple(parse_keep(part) for part in split_list(keep))
    check_not_empty("--keep", keeps, "0.25,64")
    methods = DEFAULT_PRUNERS if pruners is None else tuple(split_list(pruners))
    check_not_empty("--pruners", methods, "random,dart, or all")
    return methods, keeps


def _bench_classifier(context: typer.Context, classifier: str, asked: BenchOptions) -> None:
    """The same for a bare ViT, whose own defaults stand where an option was not said."""
    from vtc.eval.classify import classifier_job as classify

    classify.run_bench(
        classify.ClassifyOptions(
            model=classifier,
            data=asked.data,
            pruners=asked.pruners if was_given(context, "pruners") else None,
            keeps=asked.keeps if was_given(context, "keep") else classify.DEFAULT_KEEPS,
            limit=asked.limit,
            output=asked.output,
            on_error=asked.on_error,
            seed=asked.seed,
            seeds=asked.seeds,
            random=asked.random,
            match=asked.match,
            batch_size=asked.batch_size if was_given(context, "batch_size") else classify.BATCH,
            device=asked.device,
            dtype=asked.dtype,
            timing=asked.timing,
            arguments=asked.arguments,
        )
    )
