"""Sizes in a text model's configuration that may be another in each layer."""

from __future__ import annotations

from typing import Any


def layer_size(config: Any, name: str, layer: int = 0, default: Any = None) -> Any:
    """What `config` says of `name` in one `layer`; `default` where it says nothing.

    Where layers differ (Gemma 4, Dots 3) transformers raises an error of its own for what has no one number, and no
    ``AttributeError``: ``getattr`` with a default does not help.
    """
    try:
        return getattr(config, name, default)
    except Exception:  # the error's class is of newer versions only
        return getattr(config.per_layer_config[layer], name, default)
