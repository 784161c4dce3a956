"""What the user calls MODEL to its configuration, without the net: hub id, folder, config.json or model_type."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from vtc.config_json import HUB_ID, config_file, read_config
from vtc.model_sources import find_source, is_bundled


def config_of(model: str) -> Any:
    """The configuration of a model.

    Parameters
    ----------
    model : str
        A folder, the path of a config.json, the name of a bundled one, a ``model_type`` of transformers (its default
        configuration), or a hub id whose config.json is on this machine.

    Raises
    ------
    ValueError, OSError
        If there is none; the message says what to do.
    """
    if model.startswith(("timm:", "open_clip:")):
        raise ValueError(f"vtc check is for models that answer about pictures, and {model!r} is a classifier")
    if is_bundled(model):
        return _read(config_file(Path(find_source(model))))
    path = Path(model).expanduser()
    if path.is_dir():
        return _read(config_file(path))
    if path.is_file():
        return _read(path)
    from transformers import CONFIG_MAPPING, AutoConfig

    if model in CONFIG_MAPPING:
        return AutoConfig.for_model(model)
    if HUB_ID.match(model) and not path.parent.is_dir():
        return _read(_cached(model))
    near = difflib.get_close_matches(model, list(CONFIG_MAPPING), 3)
    also = f" Near: {', '.join(near)}." if near else ""
    raise ValueError(
        f"{model!r} is no folder, no config.json, no hub id and no model_type of the installed transformers.{also}"
    )


def _cached(hub_id: str) -> Path:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json")
    if not isinstance(found, str):
        raise OSError(
            f"the configuration of {hub_id!r} is not on this machine, and vtc check stays offline. Fetch it with "
            f"'hf download {hub_id} config.json' (a few kB, no weights), or give the path of a config.json"
        )
    return Path(found)


def _read(path: Path) -> Any:
    given = read_config(path)
    from transformers import CONFIG_MAPPING

    kind = given["model_type"]
    if kind not in CONFIG_MAPPING:
        code = " (it comes with code of its own: take the transformers-native port, a '-hf' repository)"
        raise ValueError(
            f"the installed transformers does not know the model_type {kind!r} of {path}"
            + (code if "auto_map" in given else "")
        )
    try:
        return CONFIG_MAPPING[kind].from_dict(given)
    except Exception as error:
        raise ValueError(f"transformers does not accept {path}: {type(error).__name__}: {error}") from error
