"""A model's configuration as far as it can be read before transformers, and with it torch, is imported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .model_sources import find_source, is_bundled

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
CONFIG, ADAPTER = "config.json", "adapter_config.json"


def read_config(path: Path) -> dict[str, Any]:
    """The content of a ``config.json``, which names its ``model_type``.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"), object_hook=_special_float)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(given, dict) or not isinstance(given.get("model_type"), str):
        raise ValueError(f"{path} has no model_type, so it is no configuration of transformers")
    return given


def _special_float(given: dict[str, Any]) -> Any:
    """What JSON has no number for, as transformers writes it: ``{"__float__": "Infinity"}``."""
    return float(given["__float__"]) if given.keys() == {"__float__"} else given


def config_file(folder: Path) -> Path:
    """The ``config.json`` of a folder.

    Raises
    ------
    OSError
        If there is none.
    """
    if not (folder / CONFIG).is_file():
        raise OSError(f"the folder {folder} has no {CONFIG}")
    return folder / CONFIG


def refuse_model(name: str) -> None:
    """Refuse what can be no model with weights: neither a folder with a configuration nor like a hub id.

    Raises
    ------
    OSError, ValueError
        Saying why.
    """
    source = find_source(name)
    folder = Path(source)
    if not folder.is_dir():
        if not HUB_ID.match(source):
            raise FileNotFoundError(f"no such model: {name!r} is no folder, and no hub id has such characters")
    elif not (folder / ADAPTER).is_file():  # an adapter's names the model that has the configuration
        read_config(config_file(folder))


def refuse_configuration(name: str) -> None:
    """Refuse what can be no configuration: the same, and a file; a model type's word is transformers' to know.

    Raises
    ------
    OSError, ValueError
        Saying why.
    """
    path = Path(name).expanduser()
    if is_bundled(name):
        return
    if path.is_file():
        read_config(path)
    elif path.is_dir():
        read_config(config_file(path))
    elif "/" in name:
        refuse_model(name)
