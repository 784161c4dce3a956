"""Whether vtc can carry a model, found out from its configuration alone, before gigabytes of weights are read."""

from __future__ import annotations

from typing import Any

import torch

from vtc.models.layout.model_parts import locate

from .adapter import Adapter


def model_without_weights(config: Any) -> Any:
    """An image-text model of a configuration on the device ``meta``.

    Raises
    ------
    NotImplementedError
        If it is no image-text model of the installed transformers.
    """
    from transformers import AutoModelForImageTextToText

    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise NotImplementedError(
            f"a model of the type {config.model_type!r} ({type(config).__name__}) takes no pictures beside text as far "
            "as the installed transformers knows (AutoModelForImageTextToText), so there are no visual tokens to prune"
        )
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def refuse_unknown(config: Any) -> None:
    """Build a model of `config` without weights, and refuse what would be refused once it is wrapped.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a whole model.

    Raises
    ------
    NotImplementedError
        If it is no image-text model of transformers, or one that vtc can't carry; the message says why.
    """
    Adapter(locate(model_without_weights(config)), ())
