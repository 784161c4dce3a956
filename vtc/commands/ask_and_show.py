"""``vtc ask`` answers a question about a picture, ``vtc show`` draws what was kept of it: their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vtc.default_method import KEEP, METHOD

from .options import (
    Device,
    Dtype,
    Import,
    Keep,
    Model,
    Overwrite,
    cell_of,
    heavy_imports,
    import_all,
    method_text,
    output_file,
    refuse_methods,
)


def ask(
    image: Annotated[Path, typer.Option(help="The picture.")],
    question: Annotated[str, typer.Option(help="The question.")],
    pruner: Annotated[
        str | None, typer.Option(help="Method, pipeline or folder of `vtc tune`; unpruned without it and --keep.")
    ] = None,
    keep: Keep = None,
    imports: Import = None,
    model: Model = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Answer one question about one picture."""
    from vtc.eval.tasks.media.images import open_image

    if not question.strip():
        raise ValueError("--question is empty")
    picture = open_image(image)
    import_all(imports)
    with heavy_imports():
        cell = cell_of(pruner, keep, model)
        from vtc.eval.inspect.ask import ask as run
        from vtc.eval.inspect.ask import saved_cell
        from vtc.eval.vlm.loading import load_model

    cell = cell or saved_cell(model)
    reply = run(load_model(model, device, dtype), cell, picture, question, max_new_tokens)
    typer.echo(reply.text)
    share = 100 * reply.kept / reply.total
    typer.echo(f"[{cell.spec}: {reply.kept} of {reply.total} visual tokens ({share:.1f}%), {reply.seconds:.2f} s]")


Pruners = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Method or pipeline ({METHOD} if there is no --signal either); give it several times to see them side by "
        "side."
    ),
]
Signals = Annotated[
    list[str] | None,
    typer.Option(
        help="A heat map instead: 'relevance' of each token for the answer, by gradients through the whole model "
        "(slow); 'predicted', the same as the explainer method predicts it; 'attention' of the text in layer 0; "
        "'classes', embedlens' sink and dead tokens."
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="Network of vtc train-explainer, for --signal predicted on your own model.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="The PNG to write (default: kept.png, or the signal's name such as relevance.png; numbered if it is "
        "there)."
    ),
]


def show(
    pruner: Pruners = None,
    signal: Signals = None,
    weights: Weights = None,
    keep: Keep = None,
    image: Annotated[Path | None, typer.Option(help="The picture; one of the bundled ones if left out.")] = None,
    question: Annotated[str | None, typer.Option(help="Some methods read it.")] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    imports: Import = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Draw the tokens that a method keeps, or a signal of theirs, over the picture."""
    from vtc.eval.tasks.media.images import open_image

    if not pruner and not signal:
        pruner, keep = [METHOD], keep or str(KEEP)
    if weights is not None and "predicted" not in (signal or ()):
        raise ValueError("--weights goes with --signal predicted")
    from vtc.eval.terminal.option_checks import check_file

    if weights is not None and not weights.is_dir():
        check_file("--weights", weights)
    if signal:
        from vtc.eval.inspect.options import check_signals

        check_signals(signal)
    usual = "-".join(dict.fromkeys([*(signal or ()), *(["kept"] if pruner else [])]))
    file = output_file("--out", out, f"{usual}.png", overwrite)
    if keep is not None and not pruner:
        raise ValueError("--keep needs --pruner; vtc pruners lists the methods")
    import_all(imports)
    picture = open_image(image) if image is not None else None
    refuse_methods(map(method_text, pruner or ()))
    cells = [cell for text in pruner or () if (cell := cell_of(text, keep))]
    with heavy_imports():
        from vtc.eval.example_question import example
        from vtc.eval.inspect.kept_tokens import show_kept
        from vtc.eval.vlm.loading import load_model

    if picture is None:
        picture, asked = example()
        question = question or asked
    question, loaded = question or "What is in the image?", load_model(model, device, dtype)
    heats: Any = []
    if signal:
        from vtc.eval.inspect.heat_maps import find_signals

        heats = find_signals(loaded, signal, picture, question, str(weights) if weights else None)
    found = show_kept(loaded, cells, picture, question, file, beside=heats)
    for name, (heat, _) in zip(signal or (), heats, strict=True):
        typer.echo(f"{name}: {heat.note}")
    for cell, kept in zip(cells, found, strict=True):
        typer.echo(f"{cell.spec}: {kept.note}")
    typer.echo(f"written: {file}")
