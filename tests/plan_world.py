"""Small models of every type with their stock processors, for plans: with and without weights."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from stock_processors import STOCK
from stock_processors.geometry import GEOMETRY
from stock_processors.make import picture
from transformers import AutoModelForImageTextToText
from versions import known

from vtc.eval.check.prompts.build_prompts import kind_of
from vtc.eval.check.tiny_model.config_source import config_of
from vtc.eval.check.tiny_model.shrink import completed, shrink
from vtc.eval.plan.devices import SHEETS
from vtc.models.layout.model_parts import Parts, locate
from vtc.models.try_without_weights import model_without_weights

SIZE = (70, 50)
BYTES = 4


@cache
def small_config(kind: str) -> Any:
    """The configuration of a small model that its stock processor can feed."""
    config = config_of(known(kind))
    prompts = kind_of(config)

    def geometry(small: dict[str, Any]) -> None:
        prompts.geometry(small)
        if kind in GEOMETRY:
            GEOMETRY[kind](small)

    return shrink(completed(config, prompts.defaults), geometry)[0]


def weightless(kind: str) -> Parts:
    """The parts of the small model on "meta"."""
    return locate(model_without_weights(small_config(kind)).eval())


def real(kind: str) -> Any:
    """The small model with weights; its experts run one by one, so that torch counts them."""
    model = AutoModelForImageTextToText.from_config(small_config(kind)).eval()
    with suppress(AttributeError, ValueError):  # it has none
        model.set_experts_implementation("eager")
    return model


def inputs(kind: str) -> dict[str, Any]:
    """What the stock processor makes of one picture."""
    return STOCK[kind](small_config(kind))([picture(*SIZE)])


def planned(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    """The JSON of ``vtc plan``."""
    from command_line import run

    code, out, err = run(capsys, "plan", "--json", *args)
    assert (code, err) == (0, "")
    return json.loads(out)  # type: ignore[no-any-return]


def bundled_config(folder: Path, **text: int) -> Path:
    """A folder with the bundled model's configuration, its text model changed, and its processor."""
    from shutil import copy

    from vtc.bundled_files import bundled_model_path

    source = bundled_model_path()
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja"):
            copy(file, folder / file.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"].update(text)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


H100 = SHEETS["h100"].device("h100")
