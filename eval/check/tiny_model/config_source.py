"""What the user calls MODEL to its configuration, without the net: hub id, folder, config.json or model_type."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


def config_of(model: str) -> Any:
    """The configuration of a model.

    Parameters
    ----------
    model : str
        A folder, the path of a config.json, ``bundled``, a ``model_type`` of transformers (its default
        configuration), or a hub id whose config.json is on this machine.

    Raises
    ------
    ValueError, OSError
        If there is none; the message says what to do.
    """
    if model.startswith(("timm:", "open_clip:")):
        raise ValueError(f"vtc check is for models that answer about pictures, and {model!r} is a classifier")
    if model == "bundled":
        from vtc.bundled_files import bundled_model_path

        return _read(bundled_model_path() / "config.json")
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise OSError(f"the folder {path} has no config.json")
        return _read(path / "config.json")
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


def _special_float(given: dict[str, Any]) -> Any:
    """What JSON has no number for, as transformers writes it: ``{"__float__": "Infinity"}``."""
    return float(given["__float__"]) if given.keys() == {"__float__"} else given


def _read(path: Path) -> Any:
    from transformers import CONFIG_MAPPING

    try:
        given = json.loads(path.read_text(encoding="utf-8"), object_hook=_special_float)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    kind = given.get("model_type") if isinstance(given, dict) else None
    if not isinstance(kind, str):
        raise ValueError(f"{path} has no model_type, so it is no configuration of transformers")
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
