"""Pictures' tokens that keep their place: positions of several dimensions in the engine.

The engine has a path for it, made for its own pruning of videos. It asks for positions when a request comes, and again
whenever rows of pictures enter a step. Stock code builds them first for what is not pruned, and repairs them then;
where a prefix is cached nothing enters, and they stay wrong. Here what follows a picture is exact from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .item_fields import LENGTHS
from .positions import CHANNELS, Run, narrowed, placed, slots_from, widened


class RotaryModel:
    """A mixin in front of ``PrunedModel`` for families whose positions have several dimensions."""

    supports_multimodal_pruning: ClassVar[bool] = True
    supported_video_pruning_methods: ClassVar[tuple[str, ...]] = ("evs",)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        # videos stay whole, and no stock code is to put channels of its own behind rows
        self.is_multimodal_pruning_enabled = False

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions of a prompt, exact but for pictures' tokens, and what follows it."""
        features = sorted(mm_features, key=lambda f: f.mm_position.offset)
        pictures = [f for f in features if f.modality == "image"]
        runs = [Run(f.mm_position.offset, f.mm_position.length, int(f.data[LENGTHS].data.sum())) for f in pictures]
        tokens, starts = widened(input_tokens, runs)
        at = iter(zip(runs, starts, strict=True))
        whole, gone = [], 0
        for feature in features:
            place = feature.mm_position
            if feature.modality == "image":
                run, start = next(at)
                whole.append(replace(feature, mm_position=replace(place, offset=start, length=run.full)))
                gone += run.full - run.kept
            else:
                whole.append(replace(feature, mm_position=replace(place, offset=place.offset + gone)))
        positions, _ = super().get_mrope_input_positions(tokens, whole)  # type: ignore[misc]
        return narrowed(positions, runs)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Put the pictures' tokens of this step where they were, and take that off their rows."""
        width = self.__dict__["pruning"].width
        marked = [rows for rows in multimodal_embeddings if rows.shape[-1] == width + CHANNELS]
        positions = mrope_positions
        if marked:
            channels = torch.cat([rows[:, width:] for rows in marked])
            placeholder = self.config.image_token_id  # type: ignore[attr-defined]
            slots = slots_from(input_ids, placeholder, num_computed_tokens, len(channels))
            positions = placed(mrope_positions, slots, channels)
        delta = int(positions[0, -1]) + 1 - positions.shape[1]  # a prompt ends in text
        return [rows[:, :width] for rows in multimodal_embeddings], positions, delta
