"""From the rows of a vision tower to language-model tokens: which patches each token is made of, family by family.

Every function takes `x`, `[R, P, C]` patch rows of a dense tower (prefix tokens cut as the model cuts them) or `[T, C]`
of a packed one, and gives per item `[n, U, C]`: the `U` patches of each of its `n` tokens, zeros at newline tokens.
Wherever the model has a method for the rearrangement, that very method is run on `x`, whatever its channels mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layouts_by_family import VisionCall, pair, tile_shape, tile_side


def one_to_one(call: VisionCall, x: Tensor) -> list[Tensor]:
    """LLaVA-1.5: a patch is a token (packed into one row by a Pixtral tower)."""
    if call.given("sizes") is not None:
        return list(x.reshape(-1, 1, x.shape[-1]).split(call.lengths))
    return list(x[:, :, None])


def anyres(call: VisionCall, x: Tensor) -> list[Tensor]:
    """LLaVA-NeXT, OneVision: tiles packed, unpadded and resampled by the model's own code, zeros for its newline."""
    if call.modality == "video":
        pooled = call.core.apply_pooling(x)
        pooled = pooled.reshape(len(call.lengths), -1, x.shape[-1])
        return list(torch.cat([pooled, pooled.new_zeros(pooled.shape[0], 1, x.shape[-1])], 1)[:, :, None])
    counts = tile_counts(call)
    options = {}
    for name in ("vision_feature_select_strategy", "vision_aspect_ratio"):
        if name in call.core.pack_image_features.__code__.co_varnames:
            options[name] = call.option(name)
    packed, _ = call.core.pack_image_features(
        torch.split(x.contiguous(), counts), call.rows("sizes"), image_newline=x.new_zeros(x.shape[-1]), **options
    )
    return [p[:, None] for p in packed]


def tile_counts(call: VisionCall) -> list[int]:
    """Tower rows of each image: the whole image and its tiles."""
    sizes = call.rows("sizes")
    if sizes is None:
        raise ValueError("image_sizes holds no values, so the tiles of an image can't be put together")
    counts = []
    for i, size in enumerate(sizes):
        untiled = i < len(call.lengths) and call.lengths[i] == tile_side(call) ** 2 + 1  # OneVision, several images
        down, across = tile_shape(call, size)
        counts.append(1 if untiled else 1 + down * across)
    return counts


def merge_units(call: VisionCall, x: Tensor) -> list[Tensor]:
    """Qwen-VL: consecutive rows are one merge unit; Qwen2.5-VL orders the units by attention window."""
    tower = call.core.visual
    units = x.reshape(-1, tower.spatial_merge_size**2, x.shape[-1])
    order = window_order(call)
    if order is not None:
        units = units[torch.argsort(order.to(x.device))]
    grids = call.grids
    lengths = call.lengths if grids is None else [t * h * w // units.shape[1] for t, h, w in grids]
    return list(units.split(lengths or [len(units)]))


def window_order(call: VisionCall) -> Tensor | None:
    """Which unit (reading order) stands at each place inside the Qwen2.5-VL tower; None for towers without windows."""
    tower = call.core.visual
    if not hasattr(tower, "window_size"):
        return None
    given = call.given("window index")
    if given is None:
        given = call.arguments.get(f"{call.modality}_window_index")
    if given is not None:
        return given
    grid = torch.tensor(call.grids)  # on the CPU: no waiting for the device
    if hasattr(tower, "get_window_index"):  # older transformers
        return tower.get_window_index(grid)[0]
    from transformers.vision_utils import get_vision_window_index

    return get_vision_window_index(grid, tower.spatial_merge_size, tower.window_size, tower.patch_size)[0]


def internvl(call: VisionCall, x: Tensor) -> list[Tensor]:
    """InternVL: pixel shuffle."""
    side = int(x.shape[1] ** 0.5)
    ratio = call.config.downsample_ratio
    shuffled = call.core.pixel_shuffle(x.contiguous().view(x.shape[0], side, side, -1), scale_factor=ratio)
    return list(shuffled.reshape(x.shape[0], -1, int(1 / ratio) ** 2, x.shape[-1]))


def idefics3(call: VisionCall, x: Tensor) -> list[Tensor]:
    """Idefics3, SmolVLM: the connector's pixel shuffle; an item is a crop."""
    connector = call.core.connector
    shuffled = connector.pixel_shuffle(x.contiguous(), connector.scale_factor)
    return list(shuffled.reshape(x.shape[0], -1, connector.scale_factor**2, x.shape[-1]))


def gemma3(call: VisionCall, x: Tensor) -> list[Tensor]:
    """Gemma3: the square cells that the projector averages."""
    projector = call.core.multi_modal_projector
    side, cell = projector.tokens_per_side, projector.kernel_size
    return list(
        _cells(x.reshape(x.shape[0], projector.patches_per_image, projector.patches_per_image, -1), side, side, cell)
    )


def mistral3(call: VisionCall, x: Tensor) -> list[Tensor]:
    """Mistral3: the square cells that the patch merger unfolds, image by image out of one packed row."""
    merge = call.config.spatial_merge_size
    height, width = pair(call.config.vision_config.patch_size)
    sizes = call.rows("sizes")
    if sizes is None:
        raise ValueError("image_sizes holds no values, so the rows of a packed tower can't be told apart")
    shapes = [(h // height, w // width) for h, w in sizes]
    parts = x.reshape(-1, x.shape[-1]).split([h * w for h, w in shapes])
    return [
        _cells(part.reshape(1, h, w, -1), h // merge, w // merge, merge)[0]
        for part, (h, w) in zip(parts, shapes, strict=True)
    ]


def _cells(x: Tensor, rows: int, cols: int, cell: int) -> Tensor:
    """`[R, h, w, C]` to `[R, rows * cols, cell * cell, C]`; a border that fills no cell is left out."""
    x = x[:, : rows * cell, : cols * cell].reshape(x.shape[0], rows, cell, cols, cell, -1)
    return x.transpose(2, 3).reshape(x.shape[0], rows * cols, cell * cell, -1)
