"""The configuration of a model, and its processor: a few kilobytes, no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtc.eval.check.tiny_model.config_source import config_of
from vtc.eval.vlm.loading import quiet_transformers
from vtc.model_sources import BUNDLED, explained, find_source
from vtc.models.layout.model_parts import Parts, locate
from vtc.models.try_without_weights import model_without_weights


def configuration(model: str) -> tuple[Any, str | None]:
    """The configuration of what ``--model`` names, and where its processor would be; None: nowhere.

    Raises
    ------
    ValueError, OSError
        If there is none.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    path = Path(model).expanduser()
    if path.is_file():
        return config_of(model), str(path.parent)
    if model in CONFIG_MAPPING and not path.is_dir():
        return config_of(model), None
    name = find_source(model)
    if model == BUNDLED or path.is_dir():
        return config_of(name), name
    with explained(model, name):
        return AutoConfig.from_pretrained(name), name


def processor_of(model: str, folder: str | None) -> Any:
    """The processor in a folder or of a hub id.

    Raises
    ------
    OSError
        If there is none.
    """
    from transformers import AutoProcessor

    quiet_transformers()
    if folder is None or (Path(folder).is_dir() and not any(Path(folder).glob("*processor_config.json"))):
        raise OSError(
            f"{model!r} has a configuration but no processor, so how many tokens a picture has is not known: "
            "--processor names a folder or hub id that has one (preprocessor_config.json and a tokenizer)"
        )
    with explained(model, folder, processor=True):
        return AutoProcessor.from_pretrained(folder)


def parts_of(config: Any, dtype: str) -> Parts:
    """The parts of a model of this configuration, without weights.

    Raises
    ------
    ValueError, NotImplementedError
        If no model can be built of it, or vtc can't carry it.
    """
    import torch

    try:
        model = model_without_weights(config)
    except NotImplementedError:
        raise
    except Exception as error:
        raise ValueError(
            f"no model can be built of this configuration of {config.model_type!r} ({type(error).__name__}: {error})"
        ) from error
    return locate(model.to(getattr(torch, dtype)).eval())
