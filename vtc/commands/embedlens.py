"""``vtc embedlens`` calibrates sink and dead tokens of a model: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Dtype, Model, Overwrite, folders, heavy_imports, output_file


def embedlens(
    model: Model = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of pictures, or an evaluation set; the bundled images if left out.")
    ] = None,
    images: Annotated[int, typer.Option(help="Pictures to look at, 50 or more.")] = 64,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The calibration to write, for embedlens(classes=...) (default: embedlens.json, numbered if it is "
            "there)."
        ),
    ] = None,
    presence: Annotated[float, typer.Option(help="Share of images in which a vocabulary id has to be.")] = 0.9,
    sink_cosine: Annotated[float, typer.Option(help="Least mean cosine across images of sinks.")] = 0.99,
    sink_share: Annotated[float, typer.Option(help="Largest share of all tokens of a group of sinks.")] = 0.15,
    dead_cosine: Annotated[float, typer.Option(help="Least mean cosine across images of dead tokens.")] = 0.6,
    dead_share: Annotated[float, typer.Option(help="Least share of all tokens of a group of dead ones.")] = 0.05,
    image: Annotated[Path | None, typer.Option(help="Draw the classes over this picture instead.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="With --image: the calibration; what vtc knows of the model if left out.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="With --image: the PNG to write (default: classes.png, numbered if it is there)."),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Find a model's sink and dead visual tokens, which are the same in every image, or draw them over one."""
    folders(("--data", data))
    if image is None:
        if classes is not None:
            raise ValueError("--classes goes with --image, over which they are drawn")
        from vtc.eval.inspect.options import LensOptions, Rules, check_lens

        file = output_file("--output", output, "embedlens.json", overwrite, None)
        rules = Rules(presence, sink_cosine, sink_share, dead_cosine, dead_share)
        asked = LensOptions(model, data, images, file, rules, device, dtype)
        check_lens(asked)
        with heavy_imports():
            from vtc.eval.inspect.embedlens_job import run_embedlens

        run_embedlens(asked)
        return
    file = output_file("--out", out, "classes.png", overwrite)
    from vtc.eval.tasks.media.images import open_image
    from vtc.eval.terminal.option_checks import check_file

    picture = open_image(image)
    if classes is not None:
        from vtc.pruners.primitives.calibration_file import read_stored

        check_file("--classes", classes)
        read_stored(str(classes))
    from vtc.eval.inspect.token_classes import show_classes
    from vtc.eval.vlm.loading import load_model

    found = show_classes(load_model(model, device, dtype), picture, file, None if classes is None else str(classes))
    typer.echo(found.note)
    typer.echo(f"written: {file}")
