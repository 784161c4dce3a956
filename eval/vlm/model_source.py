"""From what ``--model`` names to its configuration and its processor: a few kilobytes, no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtc.eval.check.tiny_model.config_source import config_of
from vtc.model_sources import PROCESSORS, explained, find_source, is_bundled

from .loading import quiet_transformers


def configuration(model: str) -> tuple[Any, str | None]:
    """The configuration of a folder, config.json, model type, hub id or bundled model, and where its processor is.

    Returns
    -------
    config : PreTrainedConfig
        Of a hub id it is fetched.
    place : str or None
        A folder or a hub id; None: nowhere.

    Raises
    ------
    ValueError, OSError
        If there is none.
    """
    path = Path(model).expanduser()
    if path.is_file():
        return config_of(model), str(path.parent)
    if is_bundled(model) or path.is_dir():
        place = find_source(model)
        return config_of(place), place
    if "/" not in model:  # a model type, or nothing that is known
        return config_of(model), None
    from transformers import AutoConfig

    place = find_source(model)
    with explained(model, place):
        return AutoConfig.from_pretrained(place), place


def has_processor(place: str | None) -> bool:
    """Whether a folder holds a processor; a hub id is taken to."""
    if place is None:
        return False
    folder = Path(place).expanduser()
    return not folder.is_dir() or any((folder / file).is_file() for file in PROCESSORS)


def read_processor(model: str, place: str) -> Any:
    """The processor in a folder or of a hub id, of the model of this name.

    Raises
    ------
    OSError
        If it can't be read.
    """
    from transformers import AutoProcessor

    quiet_transformers()
    with explained(model, place, processor=True):
        return AutoProcessor.from_pretrained(place)
