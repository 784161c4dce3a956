"""What stands beside the text of a prompt: pictures, videos and clips of sound, all of noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Size = Any  # what a size is differs: a number of tiles, (height, width) or a grid


@dataclass
class Item:
    """One picture, video or clip of sound: its pixels (or samples), and its size as its family gives it."""

    modality: str
    pixels: Tensor
    size: Size


def of(samples: Sequence[Sequence[Item]], modality: str) -> list[Item]:
    """All items of one modality, in batch order."""
    return [item for sample in samples for item in sample if item.modality == modality]


def noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Random pixels, coarse and fine."""
    if len(shape) < 3:
        return torch.randn(shape, generator=generator)
    coarse = torch.randn(*shape[:-2], 3, 3, generator=generator)
    flat = coarse.reshape(1, -1, 3, 3)
    smooth = nn.functional.interpolate(flat, tuple(shape[-2:]), mode="bicubic").reshape(shape)
    return smooth + 0.3 * torch.randn(shape, generator=generator)
