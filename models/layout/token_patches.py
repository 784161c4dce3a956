"""From the rows of a vision tower to language-model tokens: which patches each token is made of, family by family.

Every function takes `x`, `[R, P, C]` patch rows of a dense tower (prefix tokens cut as the model cuts them) or `[T, C]`
of a packed one, and gives per item `[n, U, C]`: the `U` patches of each of its `n` tokens, zeros at newline tokens.
Wherever the model has a method for the rearrangement, that very method is run on `x`, whatever its channels mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layouts_by_family import VisionCall, merge_sizes, pair, tile_shape, tile_side


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


def next_video(call: VisionCall, x: Tensor) -> list[Tensor]:
    """LLaVA-NeXT-Video: images as ``anyres``; of a frame the means of the patches that it pools, or what it pooled."""
    if call.modality == "image":
        return anyres(call, x)
    side, stride = tile_side(call), call.config.spatial_pool_stride
    if x.shape[1] == side**2 and stride > 1:
        x = _cells(x.reshape(-1, side, side, x.shape[-1]), side // stride, side // stride, stride).mean(2)
    return list(x.reshape(len(call.lengths), -1, 1, x.shape[-1]))


def next_video_rows(call: VisionCall) -> list[int]:
    """LLaVA-NeXT-Video: tower rows of each image or video."""
    if call.modality == "image":
        return tile_counts(call)
    videos, frames = call.given("video").shape[:2]
    return [int(frames)] * int(videos)


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
    units = x.reshape(-1, call.config.vision_config.spatial_merge_size**2, x.shape[-1])
    order = window_order(call)
    if order is not None:
        units = units[torch.argsort(order.to(x.device))]
    grids = call.grids
    lengths = call.lengths if grids is None else [t * h * w // units.shape[1] for t, h, w in grids]
    return list(units.split(lengths or [len(units)]))


def window_order(call: VisionCall) -> Tensor | None:
    """Which unit (reading order) stands at each place inside the Qwen2.5-VL tower; None for towers without windows."""
    tower = getattr(call.core, "visual", None) or getattr(call.core, "vision_model", None)  # HyperCLOVA X
    if tower is None or not hasattr(tower, "window_size"):
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


def video_llama(call: VisionCall, x: Tensor) -> list[Tensor]:
    """VideoLLaMA 3: the means of merge units, whose side each item has for itself, or what the tower made of them."""
    grids, sides = call.grids, merge_sizes(call)
    if grids is None or sides is None:
        raise ValueError("grids or merge sizes hold no values, so the rows of a packed tower can't be told apart")
    counts, units = [t * h * w for t, h, w in grids], [side**2 for side in sides]
    x = x.reshape(-1, x.shape[-1])
    if len(x) == sum(counts):
        parts = zip(x.split(counts), units, strict=True)
        return [part.reshape(-1, unit, x.shape[-1]).mean(1, keepdim=True) for part, unit in parts]
    return list(x[:, None].split([n // unit for n, unit in zip(counts, units, strict=True)]))


def grid_cells(call: VisionCall, x: Tensor) -> list[Tensor]:
    """PaddleOCR-VL: the square cells of each frame, whose patches stand in reading order."""
    side = call.config.vision_config.spatial_merge_size
    return [_cells(part, part.shape[1] // side, part.shape[2] // side, side).flatten(0, 1) for part in _frames(call, x)]


def kimi(call: VisionCall, x: Tensor) -> list[Tensor]:
    """Kimi K2.5: such cells, averaged over the frames of a video."""
    down, across = call.config.vision_config.merge_kernel_size
    found = []
    for part in _frames(call, x):
        cells = part.unflatten(2, (-1, across)).unflatten(1, (-1, down)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        found.append(cells.mean(0) if len(cells) > 1 else cells[0])
    return found


def _frames(call: VisionCall, x: Tensor) -> list[Tensor]:
    """Rows of a packed tower as `[t, h, w, C]` of each item."""
    if call.grids is None:
        raise ValueError("the grids hold no values, so the rows of a packed tower can't be told apart")
    parts = x.reshape(-1, x.shape[-1]).split([t * h * w for t, h, w in call.grids])
    return [part.unflatten(0, grid) for part, grid in zip(parts, call.grids, strict=True)]


def shuffled(call: VisionCall, x: Tensor) -> list[Tensor]:
    """Aya Vision, Command A Vision: the projector's pixel shuffle."""
    projector = call.core.multi_modal_projector
    made = projector.pixel_shuffle(x.contiguous())
    return list(made.reshape(x.shape[0], -1, projector.downsample_factor**2, x.shape[-1]))


def lfm2(call: VisionCall, x: Tensor) -> list[Tensor]:
    """LFM2-VL: the square cells of each picture, whose rows are padded to the longest."""
    side, shapes = call.config.downsample_factor, call.rows("shapes")
    if shapes is None:
        raise ValueError("spatial_shapes holds no values, so that cells can't be told from padding")
    return [
        _cells(part[: h * w].reshape(1, h, w, -1), h // side, w // side, side)[0]
        for part, (h, w) in zip(x, shapes, strict=True)
    ]


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
