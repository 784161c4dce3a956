"""Refuses beams and several returned sequences where transformers would give samples the wrong pictures.

Before 5.18 ``generate`` repeats the rows of ``pixel_values`` one by one: pictures `[A, B]` of one sample become
`[A, A, B, B]`, where its two beams need `[A, B, A, B]`. Newer versions encode first and repeat by sample, but for
videos of models that have no ``get_video_features`` (Perception LM); some families expand by themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import GenerationMixin

from vtc.models.layout.items_behind_placeholders import joined_crop
from vtc.models.layout.model_parts import Parts
from vtc.models.stock.call_arguments import Call, Signature
from vtc.models.tower.videos_as_images import takes_videos_as_images

EXPAND = "_expand_inputs_for_generation"
MODALITIES = ("image", "video")


def repeats_pictures_one_by_one(parts: Parts) -> bool:
    """Whether this version of transformers does so for this model."""
    own = getattr(type(parts.model), EXPAND, None) is not getattr(GenerationMixin, EXPAND, None)
    first = hasattr(parts.model, "_prepare_multimodal_encoder_kwargs_for_generation")
    first = first and not takes_videos_as_images(parts.core)
    by_sample = joined_crop(parts.core) is not None  # a row of pixels is all that a sample has
    return not (own or first or by_sample)


def guarded_expansion(placeholders: Callable[[Any, Any], dict[str, Tensor]], expand: Any) -> Any:
    """`expand`, but an error where a sample has several rows of pixels.

    Parameters
    ----------
    placeholders : callable
        Ids and embeddings to the placeholders of each modality, `[B, L]` bool.
    expand : callable
        The model's ``_expand_inputs_for_generation``.
    """

    @functools.wraps(expand)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        call = Call(Signature(expand), args, kwargs)
        times, ids = call.get("copies", 1), call.get("ids")
        if times > 1 and any(call.get(modality) is not None for modality in MODALITIES):
            ids = ids if ids is not None and ids.numel() else None
            for modality, mask in placeholders(ids, call.get("embeds")).items():
                pixels = call.get(modality)
                # as many rows as samples with a picture: one each
                if pixels is not None and len(pixels) != int(mask.any(1).sum()):
                    raise NotImplementedError(
                        f"this version of transformers mixes up the {modality}s (or their tiles) of a sample that has "
                        f"several when it makes {times} sequences of it: upgrade transformers (5.18 does so only for "
                        "videos of models without get_video_features), or, without beams, put every sample "
                        f"{times} times into the batch"
                    )
        return expand(*args, **kwargs)

    return guarded
