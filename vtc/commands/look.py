"""``vtc ask`` and ``vtc show``: one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Dtype, Model, cell_of


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
    cell = cell_of(pruner, keep)
    from vtc.eval.ask import ask as run
    from vtc.eval.ask import saved_cell
    from vtc.eval.loading import load_model

    cell = cell or saved_cell(model)
    reply = run(load_model(model, device, dtype), cell, picture, question, max_new_tokens)
    typer.echo(reply.text)
    share = 100 * reply.kept / reply.total
    typer.echo(f"[{cell.spec}: {reply.kept} of {reply.total} visual tokens ({share:.1f}%), {reply.seconds:.2f} s]")


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
    cells = [cell for text in pruner if (cell := cell_of(text, keep))]
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
