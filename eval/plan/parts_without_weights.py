"""The parts of a model of a configuration alone."""

from __future__ import annotations

from typing import Any

from vtc.models.layout.model_parts import Parts, locate
from vtc.models.try_without_weights import model_without_weights


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
