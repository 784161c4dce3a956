"""Clips of sound beside pictures: how each family is given them, and what stands for them in a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from vtc.eval.check.tiny_model.token_ids import Tokens
from vtc.models.stock.transformers_api import features_in

from .items import Item, noise, of


@dataclass(frozen=True)
class Sound:
    """Clips padded to the longest, and a mask of what is no padding.

    Attributes
    ----------
    width : int
        Numbers in a frame; 0: a wave, of a number each.
    sizes : tuple of int
        Frames of the clips that prompts go through.
    values, mask : str
        The model's arguments.
    frames_last : bool
        Whether frames are the last axis, and not the second.
    marks : tuple of int
        Tokens in front of a clip and behind it.
    fixed : int or None
        Tokens of every clip, however long; None: the model is asked.
    """

    width: int
    sizes: tuple[int, ...]
    values: str = "input_features"
    mask: str = "input_features_mask"
    frames_last: bool = False
    marks: tuple[int, int] | None = None
    fixed: int | None = None

    def clip(self, size: int, generator: torch.Generator) -> Item:
        """A random clip."""
        return Item("audio", noise((size, self.width) if self.width else (size,), generator), size)

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Sound inputs of a batch."""
        clips = of(samples, "audio")
        if not clips:
            return {}
        values = pad_sequence([clip.pixels for clip in clips], batch_first=True)
        sizes = torch.tensor([clip.size for clip in clips])
        mask = torch.arange(values.shape[1]) < sizes[:, None]
        return {self.values: values.transpose(1, 2) if self.frames_last else values, self.mask: mask}

    def length(self, core: Any, clip: Item) -> int:
        """How many tokens the model itself makes of a clip."""
        if self.fixed is not None:
            return self.fixed
        with torch.no_grad():
            found = features_in(core.get_audio_features(**self.collate([[clip]])))
        parts = found if isinstance(found, (list, tuple)) else [found]
        return sum(part.reshape(-1, part.shape[-1]).shape[0] for part in parts)

    def ids(self, length: int, tokens: Tokens) -> list[int]:
        """The tokens that stand for a clip."""
        assert tokens.audio is not None
        placeholders = [tokens.audio] * length
        return placeholders if self.marks is None else [self.marks[0], *placeholders, self.marks[1]]


def in_time(frames: Sequence[float], sounds: int, chunk: float | None) -> list[bool]:
    """The order of a video's tokens, at the times `frames`, and of its sound's, one at each whole number.

    Gives for each token whether it is sound: in turn, chunk by chunk with the video's first, or sorted by time where
    `chunk` is None. Chunks are counted as Qwen2.5-Omni counts them: the next one begins where a time is past the end of
    this one, however far.
    """
    if chunk is None:
        keys = [(t, False) for t in frames] + [(float(t), True) for t in range(sounds)]
    else:
        keys = [(c, False) for c in _chunks(frames, chunk)] + [(c, True) for c in _chunks(range(sounds), chunk)]
    return [heard for _, heard in sorted(keys)]


def _chunks(times: Sequence[float], chunk: float) -> list[float]:
    found, now = [], 0
    for t in times:
        now += t >= (now + 1) * chunk
        found.append(float(now))
    return found
