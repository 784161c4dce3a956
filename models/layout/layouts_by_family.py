"""Where each family's tokens sit in the picture: one call of ``get_image_features`` in, one ``Layout`` per span out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from vtc.models.stock.call_arguments import among
from vtc.pruners.layout import Grid, Layout


@dataclass
class VisionCall:
    """One call of ``get_image_features`` or ``get_video_features``.

    Attributes
    ----------
    core : nn.Module
        The composite model.
    modality : str
        ``"image"`` or ``"video"``.
    arguments : mapping
        The call's arguments by name (those of ``**kwargs`` too).
    lengths : list of int
        Language-model tokens of each item; empty while the call still runs.
    """

    core: Any
    modality: str
    arguments: Mapping[str, Any]
    lengths: list[int] = field(default_factory=list)
    _rows: dict[str, list[list[int]] | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        extra = self.arguments.get("kwargs")
        self.arguments = {**self.arguments, **extra} if isinstance(extra, Mapping) else dict(self.arguments)

    @property
    def config(self) -> Any:
        """Configuration of the composite model."""
        return self.core.config

    def option(self, name: str) -> Any:
        """An argument of the call that overrides the model's configuration."""
        given = self.arguments.get(name)
        return getattr(self.config, name, None) if given is None else given

    def given(self, meaning: str) -> Any:
        """An argument of the call by what it is (``call_arguments.NAMES``)."""
        return among(self.arguments, meaning)

    def rows(self, meaning: str) -> list[list[int]] | None:
        """A small integer argument (grids, sizes) on the host, or None if it is not there or holds no values.

        Read once and only when asked: on a CUDA tensor it waits for the device, as the model's own code does.
        """
        if meaning not in self._rows:
            self._rows[meaning] = _read(self.given(meaning))
        return self._rows[meaning]

    @property
    def grids(self) -> list[list[int]] | None:
        """Qwen-VL: patches of each item as `[t, h, w]`."""
        return self.rows(f"{self.modality} grid") or self.rows("image grid")


def _read(value: Any) -> list[list[int]] | None:
    if value is None:
        return None
    if isinstance(value, FakeTensor):
        value = value.constant
    if not isinstance(value, Tensor):
        return None if value is None else [[int(v) for v in row] for row in value]
    return None if value.is_meta or value.dim() != 2 else [[int(v) for v in row] for row in value.tolist()]


def pair(value: Any) -> tuple[int, int]:
    """`(height, width)` of a size that configurations give as a number or as a pair."""
    return (int(value[0]), int(value[1])) if isinstance(value, (list, tuple)) else (int(value), int(value))


def square(call: VisionCall) -> list[Layout]:
    """Items that are square pictures: crops, tiles, average-pooled images."""
    return [_square(n) for n in call.lengths]


def _square(n: int, kind: str = "image") -> Layout:
    side = math.isqrt(n)
    return Layout((Grid(side, side, kind),)) if side * side == n else Layout.line(n)


def llava(call: VisionCall) -> list[Layout]:
    """LLaVA-1.5: the tower's patch grid; with ``image_sizes`` (a Pixtral tower) each image has its own."""
    patch = pair(getattr(call.config.vision_config, "patch_size", 1))
    if call.given("sizes") is not None:
        return _sized(call, patch)
    pixels = call.given("image")
    height, width = pixels.shape[-2:] if isinstance(pixels, Tensor) else (0, 0)
    grid = Grid(height // patch[0], width // patch[1])
    layouts = []
    for n in call.lengths:
        if n == grid.tokens + 1:  # "full" feature selection keeps the class token
            layouts.append(Layout((Grid(1, 1, kind="cls"), grid)))
        else:
            layouts.append(Layout((grid,)) if n == grid.tokens else _square(n))
    return layouts


def mistral3(call: VisionCall) -> list[Layout]:
    """Mistral3: each image has its own size; merged patches."""
    merge = call.config.spatial_merge_size
    height, width = pair(call.config.vision_config.patch_size)
    return _sized(call, (height * merge, width * merge))


def _sized(call: VisionCall, cell: tuple[int, int]) -> list[Layout]:
    sizes = call.rows("sizes")
    if sizes is None or len(sizes) != len(call.lengths):
        return lines(call)
    return [Layout((Grid(h // cell[0], w // cell[1]),)) for h, w in sizes]


def qwen(call: VisionCall) -> list[Layout]:
    """Qwen2/2.5/3-VL: one grid of merge units per image, one per frame (pair) of a video."""
    if call.grids is None or len(call.grids) != len(call.lengths):
        return lines(call)
    merge = call.config.vision_config.spatial_merge_size
    kind = "frame" if call.modality == "video" else "image"
    return [Layout((Grid(h // merge, w // merge, kind),) * t) for t, h, w in call.grids]


def kimi(call: VisionCall) -> list[Layout]:
    """Kimi K2.5: one grid of merge units an item, also of a video, whose frames are averaged."""
    if call.grids is None or len(call.grids) != len(call.lengths):
        return lines(call)
    down, across = call.config.vision_config.merge_kernel_size
    return [Layout((Grid(h // down, w // across),)) for _, h, w in call.grids]


def video_llama(call: VisionCall) -> list[Layout]:
    """VideoLLaMA 3: as Qwen-VL, with a side of the merge units for each item."""
    grids, sides = call.grids, merge_sizes(call)
    if grids is None or sides is None or not len(grids) == len(sides) == len(call.lengths):
        return lines(call)
    kind = "frame" if call.modality == "video" else "image"
    return [Layout((Grid(h // side, w // side, kind),) * t) for (t, h, w), side in zip(grids, sides, strict=True)]


def merge_sizes(call: VisionCall) -> list[int] | None:
    """VideoLLaMA 3: patches along a side of each item's merge units."""
    given = call.arguments.get(f"{call.modality}_merge_sizes")
    given = given[:, None] if isinstance(given, Tensor) else given and [[side] for side in given]
    found = _read(given)
    return None if found is None else [row[0] for row in found]


def lfm2(call: VisionCall) -> list[Layout]:
    """LFM2-VL: each picture or tile has its own shape in patches, which the projector merges."""
    shapes, side = call.rows("shapes"), call.config.downsample_factor
    if shapes is None or len(shapes) != len(call.lengths):
        return lines(call)
    return [Layout((Grid(h // side, w // side),)) for h, w in shapes]


def tile_side(call: VisionCall) -> int:
    """Patches along a side of one LLaVA-NeXT / LLaVA-OneVision tile."""
    return int(call.config.vision_config.image_size // call.config.vision_config.patch_size)


def tile_shape(call: VisionCall, size: list[int]) -> tuple[int, int]:
    """Tiles along height and width into which an image of `size` was cut."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    shape = get_anyres_image_grid_shape(size, call.config.image_grid_pinpoints, call.config.vision_config.image_size)
    return int(shape[0]), int(shape[1])


def anyres(call: VisionCall) -> list[Layout]:
    """LLaVA-NeXT, OneVision images: the whole image, then its tiles as one unpadded mosaic with a newline per row."""
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    side, sizes = tile_side(call), call.rows("sizes")
    ratio = call.option("vision_aspect_ratio")  # OneVision only
    layouts = []
    for i, n in enumerate(call.lengths):
        if n == side * side + 1:  # OneVision, several images in a sample: no tiles
            layouts.append(Layout((Grid(side, side, newline="end"),)))
            continue
        if sizes is None or i >= len(sizes):
            layouts.append(Layout.line(n))
            continue
        down, across = tile_shape(call, sizes[i])
        # the model's own function on a tensor without data: same rounding by construction
        rows, cols = unpad_image(torch.empty(1, down * side, across * side, device="meta"), sizes[i]).shape[1:]
        cuts = [[j * side - (n * side - left) // 2 for j in range(1, n)] for n, left in ((down, rows), (across, cols))]
        if ratio is not None:
            shrink = math.sqrt(rows * cols / (int(ratio.strip("anyres_max_")) * side**2))  # noqa: B005 (as the model does)
            if shrink > 1.1:
                cuts = [[round(cut / shrink) for cut in line] for line in cuts]
                rows, cols = int(rows // shrink), int(cols // shrink)
        mosaic = Grid(rows, cols, "mosaic", newline="row", cuts=(tuple(cuts[0]), tuple(cuts[1])))
        layouts.append(Layout((Grid(side, side, "base"), mosaic)))
    return layouts


def onevision(call: VisionCall) -> list[Layout]:
    """LLaVA-OneVision: images as ``anyres``; videos as pooled frames and one newline at the very end."""
    if call.modality == "image":
        return anyres(call)
    side = math.ceil(tile_side(call) / 2)
    layouts = []
    for n in call.lengths:
        frames = (n - 1) // side**2
        grids = [Grid(side, side, "frame")] * (frames - 1) + [Grid(side, side, "frame", newline="end")]
        layouts.append(Layout(tuple(grids)))
    return layouts


def next_video(call: VisionCall) -> list[Layout]:
    """LLaVA-NeXT-Video: images as ``anyres``; videos as pooled frames."""
    if call.modality == "image":
        return anyres(call)
    side = tile_side(call) // call.config.spatial_pool_stride
    return [Layout((Grid(side, side, "frame"),) * (n // side**2)) for n in call.lengths]


def onevision_fed(call: VisionCall) -> list[int]:
    """LLaVA-OneVision: older transformers add a video's newline behind ``get_video_features``."""
    pixels = call.given("image") if call.given("video") is None else call.given("video")
    if call.modality == "image" or not isinstance(pixels, Tensor):
        return call.lengths
    content = pixels.shape[1] * math.ceil(tile_side(call) / 2) ** 2
    return [n + (n == content) for n in call.lengths]


def lines(call: VisionCall) -> list[Layout]:
    """Nothing known."""
    return [Layout.line(n) for n in call.lengths]


def checked(call: VisionCall, layouts: list[Layout]) -> list[Layout]:
    """`layouts`, with a line wherever one does not add up to its span."""
    if len(layouts) != len(call.lengths):
        return lines(call)
    return [lay if lay.tokens == n else Layout.line(n) for lay, n in zip(layouts, call.lengths, strict=True)]
