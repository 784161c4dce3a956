"""What a stock model accepts and pruning can't follow, said in words before anything could be wrong."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from vtc.models.layout.model_parts import Parts
from vtc.models.layout.spans import readable
from vtc.models.stock.attention_api import PACKED_KWARGS, attention_kind
from vtc.models.stock.call_arguments import Call, configured, takes
from vtc.models.stock.transformers_api import CONTINUOUS, own_generate
from vtc.pruners.base import Pruner, Stop

MERGED = (
    "embeddings came without pictures: vtc can't tell which of them are visual tokens, so none is pruned. Give the "
    "model input_ids (or embeddings of the placeholders) with pixel_values or mm_encoder_outputs instead"
)


def refuse_generate(parts: Parts) -> None:
    """Refuse a model whose ``generate`` may go round the composite model, of which only the user says what it is.

    Raises
    ------
    NotImplementedError
        If its class has one of its own.
    """
    if parts.family.projector or not own_generate(parts.model):  # families of the table generate by transformers' own
        return
    raise NotImplementedError(
        f"{type(parts.model).__name__} has a generate() of its own, which may call the text model without its "
        f"composite model {type(parts.core).__name__}, so that nothing would be pruned. Wrap a model that generates by "
        "transformers' GenerationMixin, or add a row to vtc/models/layout/families.py once that is sure"
    )


def refuse_unnamed(parts: Parts) -> None:
    """Refuse a model whose configuration does not say which tokens stand for pictures.

    Raises
    ------
    NotImplementedError
        If it names neither a picture's nor a video's.
    """
    if all(getattr(parts.config, f"{modality}_token_id", None) is None for modality in ("image", "video")):
        raise NotImplementedError(
            f"the configuration of {type(parts.core).__name__} names no image_token_id, so vtc can't tell which tokens "
            "stand for a picture: set it first, e.g. model.config.image_token_id = 32000, the id that the processor "
            "puts in a picture's place, or upgrade transformers"
        )


def refuse_merging(parts: Parts, stops: Sequence[tuple[Pruner, Stop]]) -> None:
    """Refuse to merge visual tokens at the input of a text model whose layers are what pictures are fed to.

    Raises
    ------
    NotImplementedError
        If it is one, and any of the `stops` at the input merges.
    """
    merging = [pruner.name for pruner, _ in stops if pruner.merges]
    if merging and takes(parts.lm, "injected"):
        raise NotImplementedError(
            f"{merging[0]} merges visual tokens at the input, where {type(parts.lm).__name__} has none: its layers add "
            "the features of pictures. Let it merge before a decoder layer (layer=...), or take a method that drops "
            "tokens without merging"
        )


def refuse_continuous(name: str, method: Any) -> Any:
    """Stands for a method of continuous batching, whose paged cache holds the same tokens in every layer."""

    @functools.wraps(method)
    def refused(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"{name} (continuous batching) keeps a paged cache, which can't hold a different number of tokens per "
            "layer. Use generate(), or call vtc.restore(model) first"
        )

    return refused


def continuous_methods(model: Any) -> list[str]:
    """Names of the methods of `model` that begin continuous batching."""
    return [name for name in CONTINUOUS if hasattr(model, name)]


def refuse_arguments(parts: Parts, call: Call, mask: Any, cache: Any) -> None:
    """Refuse a forward of the text model that pruning would get wrong.

    Raises
    ------
    NotImplementedError
        For several samples in one row, attention in both directions, and paged attention.
    """
    config = parts.lm.config
    if attention_kind(config).startswith("paged"):
        raise NotImplementedError(
            f"{attention_kind(config)} can't hold a different number of tokens per layer: call "
            "model.set_attn_implementation('sdpa'), or vtc.restore(model), first"
        )
    causal = call.get("causal")
    if causal is False or (causal is None and configured(config, "causal") is False):
        raise NotImplementedError(
            "is_causal=False: vtc makes causal masks of what pruning leaves. Leave it out, or call vtc.restore(model)"
        )
    packed = any(call.kwargs.get(name) is not None for name in PACKED_KWARGS)
    if packed or (mask is None and cache is None and _starts_anew(call.get("positions"))):
        raise NotImplementedError(
            "several samples are packed into one row (cu_seq_lens, or position_ids that start anew without a "
            "mask): methods would take them for one. Give every sample a row of its own, and a mask for the padding"
        )


def refuse_fewer_columns(parts: Parts, before: int, after: int) -> None:
    """Refuse a composite model that drops columns by itself: placeholders no longer tell where its tokens stand.

    Raises
    ------
    NotImplementedError
        If of `before` columns that it was given `after`, another number, reach its text model.
    """
    if before == after:
        return
    rate = getattr(parts.config, "video_pruning_rate", None)
    why = f" (video_pruning_rate={rate} in its configuration: load it with 0, and let vtc prune)" if rate else ""
    raise NotImplementedError(
        f"{type(parts.core).__name__} was called with {before} columns and hands {after} to its text model: it drops "
        f"or adds some by itself{why}, and vtc can't tell which"
    )


def _starts_anew(positions: Any) -> bool:
    """Whether transformers takes position ids for those of several sequences in a row, as it does without a cache."""
    if not isinstance(positions, Tensor) or not readable(positions):
        return False
    if positions.dim() == 3:  # Qwen-VL: text positions in front of the three of m-rope
        if positions.shape[0] != 4:
            return False
        positions = positions[0]
    return bool((torch.diff(positions, dim=-1) != 1).any())


def warn_merged() -> None:
    """Say that embeddings merged by the caller are not pruned."""
    warnings.warn(MERGED, UserWarning, stacklevel=2)
