"""``vtc compare-selections`` says how much of the same several methods keep: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Device,
    Dtype,
    Import,
    Model,
    Overwrite,
    cell_of,
    import_all,
    method_text,
    output_file,
    question_folder,
    refuse_methods,
)


def compare_selections(
    pruner: Annotated[list[str], typer.Option(help="Method or pipeline; give it two times or more.")],
    keep: Annotated[str | None, typer.Option(help="What is kept: 0.25 or 64.")] = None,
    image: Annotated[Path | None, typer.Option(help="The picture; bundled ones if left out.")] = None,
    question: Annotated[str | None, typer.Option(help="Some methods read it.")] = None,
    images: Annotated[
        int | None, typer.Option(help="Average over so many pictures (default: 1); one says little.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Evaluation set for --images; the bundled one if left out.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The PNG to write (default: selections.png, numbered if it is there).")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    imports: Import = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Show how much of the same several methods keep, beside what chance would give."""
    file = output_file("--out", out, "selections.png", overwrite)
    question_folder(data)
    if image is not None and (images is not None or data is not None):
        raise ValueError("--image is one picture; leave out --images and --data, which choose others")
    if images is not None and images < 1:
        raise ValueError(f"--images {images} is out of range: at least 1")
    import_all(imports)
    from vtc.eval.tasks.media.images import open_image

    picture = open_image(image) if image is not None else None
    refuse_methods(map(method_text, pruner))
    cells = [cell for text in pruner if (cell := cell_of(text, keep))]
    from vtc.eval.inspect.compare_job import SelectionOptions, check_cells, run_selections

    check_cells(cells)
    run_selections(
        SelectionOptions(
            cells, file, picture, 1 if images is None else images, data, question, as_json, model, device, dtype
        )
    )
