"""One picture of a real size for each way that flagships take pictures."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .flagship import Picture


def pixels(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor on ``meta``."""
    return torch.empty(shape, dtype=dtype, device="meta")


def patches(rows: int, cols: int, width: int) -> Picture:
    """Flattened patches `[rows * cols, width]` and their (t, h, w) grid; 2 x 2 of them make a token."""
    inputs = {"pixel_values": pixels(rows * cols, width), "image_grid_thw": torch.tensor([[1, rows, cols]])}
    return Picture(inputs, (rows * cols // 4,))


def small_squares(rows: int, cols: int, side: int) -> Picture:
    """Patches as small pictures `[rows * cols, 3, side, side]` and their grid."""
    one = patches(rows, cols, 3 * side**2)
    return Picture({**one.inputs, "pixel_values": pixels(rows * cols, 3, side, side)}, one.lengths)


def tiles(count: int, side: int, tokens: int) -> Picture:
    """Tiles `[count, 3, side, side]` that are spans of their own."""
    return Picture({"pixel_values": pixels(count, 3, side, side)}, (tokens,) * count)


def gemma4() -> Picture:
    """2520 patches with their places, 3 x 3 of them a token: Gemma 4."""
    places = pixels(1, 2520, 2, dtype=torch.long)
    return Picture({"pixel_values": pixels(1, 2520, 768), "image_position_ids": places}, (280,))


def molmo2() -> Picture:
    """The whole picture and six crops, pooled by a table: Molmo2."""
    tokens = 14 * 14 + 28 * 42
    pools = pixels(tokens, 4, dtype=torch.long)
    grids = torch.tensor([[14, 14, 28, 42]])
    return Picture({"pixel_values": pixels(7, 729, 588), "image_token_pooling": pools, "image_grids": grids}, (tokens,))


def row_ends() -> Picture:
    """A token more behind each row, and two for the ends: Hunyuan."""
    one = patches(64, 48, 768)
    return Picture(one.inputs, (32 * (24 + 1) + 2,))


def any_res() -> Picture:
    """A base crop and a mosaic of four tiles: Granite 4 vision."""
    sizes = torch.tensor([[700, 700]])
    return Picture({"pixel_values": pixels(1, 5, 3, 384, 384), "image_sizes": sizes}, (744,))


def views() -> Picture:
    """The whole picture and six parts: DeepSeek-OCR2."""
    inputs = {
        "pixel_values": pixels(1, 3, 1024, 1024),
        "pixel_values_local": pixels(6, 3, 768, 768),
        "num_local_patches": torch.tensor([6]),
    }
    return Picture(inputs, (256 + 6 * 144 + 1,))


def slices() -> Picture:
    """A thumbnail and four slices in one row: MiniCPM-V."""
    sizes = torch.tensor([[32, 32]] * 5, dtype=torch.int32)
    return Picture({"pixel_values": pixels(1, 3, 14, 5 * 32 * 32 * 14), "target_sizes": sizes}, (64,) * 5)


def unpadded() -> Picture:
    """A thumbnail and four tiles as padded rows of patches: LFM2-VL."""
    inputs = {
        "pixel_values": pixels(5, 1024, 768),
        "spatial_shapes": torch.tensor([[32, 32]] * 5),
        "pixel_attention_mask": pixels(5, 1024, dtype=torch.long),
    }
    return Picture(inputs, (256,) * 5)


def radio() -> Picture:
    """Flattened patches and (rows, columns): Nemotron-H Omni."""
    return Picture({"pixel_values": pixels(64 * 48, 768), "image_grid_hw": torch.tensor([[64, 48]])}, (768,))


AT_14 = partial(patches, 74, 54, 2 * 3 * 14**2)  # 1036 x 756 pixels, 999 tokens
AT_16 = partial(patches, 64, 48, 2 * 3 * 16**2)  # 1024 x 768 pixels, 768 tokens
