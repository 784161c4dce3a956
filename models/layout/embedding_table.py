"""The language model's input embedding table, wherever its weights lie."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vtc.models.stock.spread_over_processes import whole

from .model_parts import Parts


def _embedding(parts: Parts) -> Any:
    module = getattr(parts.lm, "get_input_embeddings", lambda: None)()
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        raise NotImplementedError(
            f"{type(parts.lm).__name__} of {parts.family.name} has no input embedding table [V, D] of floating numbers "
            f"(found: {type(module).__name__}), so a method that reads one can't run on it"
        )
    return module


def vocabulary_size(parts: Parts) -> int:
    """Rows of the table, padding rows included; read off its shape, which offloaded weights have too.

    Raises
    ------
    NotImplementedError
        As ``embeddings``.
    """
    return int(_embedding(parts).weight.shape[0])


def embeddings(parts: Parts) -> Tensor:
    """The table `[V, D]` in the model's dtype: the weight itself, not a copy, so not to be written to.

    Weights that accelerate has offloaded, or that are spread over processes, are brought in for as long as the result
    lives. Where the model scales what it looks up (Gemma: by ``sqrt(D)``), the rows are unscaled, which no cosine
    notices.

    Parameters
    ----------
    parts : Parts
        The model's modules.

    Raises
    ------
    NotImplementedError
        If the text model has no such table, or a quantised one.
    """
    module = _embedding(parts)
    if not module.weight.is_meta:
        return whole(module.weight.detach())
    from accelerate.utils import align_module_device

    with align_module_device(module):
        return module.weight.detach()
