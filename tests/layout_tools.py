"""Towers that only average pixels, pictures of their own coordinates, and checks of where a layout puts them.

The tower is replaced by one that only averages the pixels of each patch, learned projections by the identity. What is
between (tiling, unpadding, pixel shuffle, pooling, patch merging, window order, packing) is the model's own.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from vision_tools import call, features, rows_of

from vtc.models.layout.families import family_of
from vtc.models.layout.family import Family
from vtc.models.layout.layouts_by_family import VisionCall
from vtc.pruners.layout import Layout

NEWLINE = -9.0


class Averaging(nn.Module):
    """A dense tower whose features are the mean pixel of each patch: `[R, P, 3]`, zeros for class tokens."""

    def __init__(self, patch: int, prefix: int):
        super().__init__()
        self.patch_size, self.prefix = patch, prefix

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        x = nn.functional.avg_pool2d(pixel_values, self.patch_size).flatten(2).transpose(1, 2)
        self.rows = x
        x = torch.cat([x.new_zeros(len(x), self.prefix, 3), x], 1)
        return Output(last_hidden_state=x, hidden_states=(x,) * 5)


class PackedAveraging(Averaging):
    """Pixtral's: images of their own sizes in one row."""

    def forward(self, pixel_values: Tensor, image_sizes: Tensor, **kwargs: Any) -> Any:
        parts = []
        for image, (h, w) in zip(pixel_values, image_sizes.tolist(), strict=True):
            parts.append(nn.functional.avg_pool2d(image[None, :, :h, :w], self.patch_size).flatten(2)[0].T)
        self.rows = x = torch.cat(parts)
        return Output(last_hidden_state=x[None], hidden_states=(x[None],) * 5)


class Output(SimpleNamespace):
    def __getitem__(self, key: str) -> Any:
        return vars(self)[key]


class Mean(nn.Module):
    """In place of a projection of whole units `[..., U * 3]`: their mean."""

    def __init__(self, channels_last: bool = True):
        super().__init__()
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, 3)).mean(-2) if self.channels_last else x.unflatten(-1, (3, -1)).mean(-1)


def picture(height: int, width: int, number: int = 0) -> Tensor:
    """`[3, h, w]`: each pixel holds (number, row, column), counted from 0.5."""
    rows = torch.arange(height).float()[:, None].expand(height, width) + 0.5
    cols = torch.arange(width).float()[None].expand(height, width) + 0.5
    return torch.stack([torch.full((height, width), float(number)), rows, cols])


def mosaic(down: int, across: int) -> Tensor:
    """A base tile and the tiles of one picture of coordinates, in reading order."""
    whole = picture(28 * down, 28 * across)
    tiles = [whole[:, 28 * r : 28 * (r + 1), 28 * c : 28 * (c + 1)] for r in range(down) for c in range(across)]
    return torch.stack([picture(28, 28, 5), *tiles])


def stub(model: nn.Module, prefix: int, patch: int = 7, packed: bool = False) -> Averaging:
    core = model.base_model
    tower = (PackedAveraging if packed else Averaging)(patch, prefix)
    for name in ("vision_tower", "vision_model"):
        if hasattr(core, name):
            setattr(core, name, tower)
    if hasattr(core, "image_newline"):
        core.image_newline = nn.Parameter(torch.full((3,), NEWLINE))
    return tower


def check(layout: Layout, tokens: Tensor, cell: tuple[int, int], number: int | None = None) -> None:
    """Each content token is where the layout says, in units of `cell` pixels; each newline is one."""
    assert layout.tokens == len(tokens)
    place = layout.coordinates
    assert torch.equal(layout.newline, (tokens == NEWLINE).all(-1))
    content = ~layout.newline
    want = (place[content, 1:] + 0.5) * torch.tensor(cell)
    assert torch.allclose(tokens[content, 1:], want.float(), atol=1e-3)
    if number is not None:
        assert torch.allclose(tokens[content, 0], torch.tensor(float(number)))


def same_patches(family: Family, asked: VisionCall, rows: Tensor, tokens: list[Tensor]) -> None:
    """The alignment gives each token its own patches: their mean is what the model made of them; newlines are zero."""
    for aligned, made in zip(family.align(asked, rows), tokens, strict=True):
        assert aligned.shape[1] == family.unit(asked.config)
        line = (made == NEWLINE).all(-1)
        assert torch.allclose(aligned.mean(1)[~line], made[~line], atol=1e-4)
        assert (aligned[line] == 0).all()


def run(model: nn.Module, inputs: dict[str, Any], modality: str = "image") -> tuple[Any, Any, Any, Any]:
    """The model's own vision call: its family, the call, the layouts and the features of each item."""
    parts = SimpleNamespace(core=model.base_model, family=family_of(model.config))
    tokens = rows_of(features(parts.core, inputs, modality))
    if hasattr(parts.core, "image_seq_len"):
        tokens = [t for f in tokens for t in f.split(parts.core.image_seq_len)]
    asked = call(parts, inputs, modality, [len(t) for t in tokens])
    if parts.family.fed is not None:  # older transformers add a newline in their forward
        asked.lengths = parts.family.fed(asked)
        line = parts.core.image_newline[None]
        tokens = [torch.cat([t, line]) if n > len(t) else t for t, n in zip(tokens, asked.lengths, strict=True)]
    return parts.family, asked, parts.family.layouts_of(asked), tokens
