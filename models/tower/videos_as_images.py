"""Videos that a model encodes as if they were pictures: by its ``get_image_features``, or frame by frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.layout.layouts_by_family import VisionCall
from vtc.models.stock.call_arguments import call_of, takes
from vtc.models.stock.per_thread import ThreadState
from vtc.models.stock.transformers_api import FEATURES


def takes_videos_as_images(core: nn.Module) -> bool:
    """Whether a composite model takes videos and has no method of its own for their features (Perception LM)."""
    return takes(core, "video") and not hasattr(core, FEATURES[1])


class VideosAsImages:
    """Tells calls of ``get_image_features`` in a forward apart: pictures first, then videos, as they are given.

    Outside a forward (``generate`` encodes pictures first, a caller makes features) every call is for pictures.
    """

    def __init__(self, core: nn.Module):
        self._local: Any = ThreadState()
        self._handles: list[Any] = []
        if takes_videos_as_images(core):
            self._handles = [
                core.register_forward_pre_hook(torch.compiler.disable(self._begin), with_kwargs=True),
                core.register_forward_hook(torch.compiler.disable(self._end), always_call=True),
            ]

    def detach(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()

    def modality(self, modality: str) -> str:
        """What a call of the method for `modality` is for."""
        left = getattr(self._local, "left", None)
        return left.pop(0) if left else modality

    def _begin(self, core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = call_of(core, args, kwargs)
        self._local.left = [m for m in ("image", "video") if call.get(m) is not None]

    def _end(self, core: nn.Module, args: Any, output: Any) -> None:
        self._local.left = None


def whole_videos(call: VisionCall, lengths: list[int]) -> list[int]:
    """Tokens of each video, where `lengths` are those of each frame of videos `[N, F, C, H, W]` (Video-LLaVA)."""
    pixels = call.given("video") if call.given("video") is not None else call.given("image")
    if call.modality != "video" or not isinstance(pixels, Tensor) or pixels.dim() != 5:
        return lengths
    videos, frames = pixels.shape[:2]
    if len(lengths) != videos * frames:
        return lengths
    return [sum(lengths[i * frames : (i + 1) * frames]) for i in range(videos)]
