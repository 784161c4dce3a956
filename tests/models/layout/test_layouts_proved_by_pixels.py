"""Layouts, alignments and projectors of families that the zoo does not build, on small models of their configurations.

In a tower that does all but attend, other pixels at the place that a layout gives a token change that token and no
other: of what the language model gets, and of what is aligned of the tower's rows.
"""

from __future__ import annotations

import math
from copy import deepcopy
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import CONFIG_MAPPING
from versions import ENCODES_FIRST
from vision_tools import attention_of, record, rows_of

from vtc.eval.check.check_job import small_model
from vtc.eval.check.prompts.build_prompts import Prompts
from vtc.eval.check.tiny_model.config_source import config_of
from vtc.models.layout.layouts_by_family import VisionCall, tile_shape
from vtc.models.layout.model_parts import Parts, locate
from vtc.models.layout.run_projector import project, projector_of, whole_projector
from vtc.models.tower.refusals import vision_layers
from vtc.pruners.layout import Layout
from vtc.pruners.primitives.projector import read_projector
from vtc.pruners.primitives.projector_sensitivity import sensitivity
from vtc.pruners.signals import EncoderAttention, EncoderFeatures, PreProjector

pytestmark = pytest.mark.usefixtures("no_grad")
SQUARES = ("paligemma", "vipllava", "deepseek_vl", "janus", "qianfan_ocr", "aya_vision", "cohere2_vision")
UNITS = ("hyperclovax_vision_v2", "minimax_m3_vl", "video_llama_3")  # patches stand unit by unit
READ = ("paddleocr_vl", "kimi_k25")  # and here row by row
TILES, PADDED, SIZED = "llava_next_video", "lfm2_vl", "lighton_ocr"
VIDEOS = (*UNITS, "kimi_k25", TILES)
CASES = [(kind, "image") for kind in (*SQUARES, *UNITS, *READ, TILES, PADDED, SIZED)] + [(k, "video") for k in VIDEOS]
# untouched models that fail: videos of Kimi K2.5 on 5.23, PaddleOCR-VL before 5.18
BROKEN = [("kimi_k25", "video")] * (Version(transformers.__version__) < Version("5.24"))
BROKEN += [("paddleocr_vl", "image")] * (not ENCODES_FIRST)
CASES = [case for case in CASES if case[0] in CONFIG_MAPPING and case not in BROKEN]
PREFIXED = ("vipllava", "qianfan_ocr", TILES)  # towers whose class token takes some attention


@lru_cache(maxsize=1)
def small(kind: str) -> tuple[Parts, Prompts]:
    model, prompts, _ = small_model(config_of(kind))
    return locate(model), prompts


def inputs_of(kind: str, modality: str) -> tuple[Parts, dict[str, Any]]:
    parts, prompts = small(kind)
    return parts, dict(prompts["video" if modality == "video" else "sizes"].inputs)


@pytest.mark.parametrize(("kind", "modality"), CASES)
def test_project_gives_the_models_own_features(kind: str, modality: str) -> None:
    parts, inputs = inputs_of(kind, modality)
    output, found = record(parts, inputs, modality, signals=[PreProjector(), EncoderAttention(queries="received")])
    unit = parts.family.unit(parts.config)
    assert len(list(projector_of(parts).parameters())) > 0
    for patches, attention, made, layout in zip(*found.signals.values(), rows_of(output), found.layouts(), strict=True):
        assert patches.shape[:2] == (len(made), unit)
        content = ~layout.newline
        assert content.all() == (kind != TILES or modality == "video")
        assert torch.allclose(project(parts, patches)[content], made[content], atol=1e-4, rtol=1e-4)
        assert attention.shape[1] == len(made)
        if modality == "image" and kind not in PREFIXED:
            side = round((attention.sum(1) ** -0.5).mean().item())  # patches of a token are averaged
            assert side**2 == unit or kind == "video_llama_3"
            assert torch.allclose(attention.sum(1), torch.tensor(side**-2.0), rtol=1e-3)


REFUSED = ("glm4v", "hyperclovax_vision_v2", "minimax_m3_vl", "janus", "aya_vision", "cohere2_vision", PADDED)


@pytest.mark.parametrize("kind", [*(k for k, m in CASES if m == "image"), "glm4v"])
def test_sensitivity_is_that_of_the_whole_way_to_the_language_model(kind: str) -> None:
    """Or it is refused: of a part, or of parts that are no layers behind each other, it would be another number."""
    parts, inputs = inputs_of(kind, "image")
    _, found = record(parts, inputs, signals=[PreProjector()])
    x = torch.cat(list(found.signals[PreProjector()]))[:4]
    if kind in REFUSED:
        with pytest.raises(NotImplementedError, match="can't be computed: it has layers that vtc does not know"):
            read_projector(whole_projector(parts), *x.shape[1:])
        return
    directions = torch.randn(3, x[0].numel(), generator=torch.Generator().manual_seed(0))
    got = sensitivity(x, read_projector(whole_projector(parts), *x.shape[1:]), directions, 1e-2)
    steps = 1e-2 * torch.nn.functional.normalize(directions).unflatten(1, x.shape[1:])
    parts = locate(deepcopy(parts.model).double())
    ends = [project(parts, x.double()[:, None] + sign * steps.double()) for sign in (1, -1)]
    want = (ends[0] - ends[1]).norm(dim=-1).mean(1) / 2e-2
    assert torch.allclose(got.double(), want, rtol=1e-3)


@pytest.mark.parametrize(("kind", "modality"), CASES)
def test_tokens_are_where_the_layout_says(kind: str, modality: str) -> None:
    parts, inputs = inputs_of(kind, modality)
    hooks = [
        attention_of(layer).register_forward_hook(
            lambda module, args, out: tuple(o * 0 for o in out[:1]) + out[1:] if isinstance(out, tuple) else out * 0
        )
        for layer in vision_layers(parts.tower)
    ]
    name = "pixel_values" if modality == "image" else "pixel_values_videos"
    signal = EncoderFeatures()
    output, found = record(parts, inputs, modality, signals=[signal])
    layouts = list(found.layouts())
    assert len(layouts) == len(found.lengths) > 1
    assert all(g.rows > 1 and g.cols > 1 for layout in layouts for g in layout.grids)
    for item, layout in enumerate(layouts):
        content = (~layout.newline).nonzero()[:, 0].tolist()
        for token in {content[0], content[len(content) // 3], content[-1], content[-layout.grids[-1].cols]}:
            pixels = inputs[name].clone()
            places = places_of(kind, modality, parts, inputs, layouts, item, token)
            for place in places:
                assert pixels[place].numel() > 0
                pixels[place] += torch.linspace(0.5, 1.5, pixels[place].numel()).view_as(pixels[place])
            after, seen = record(parts, {**inputs, name: pixels}, modality, signals=[signal])
            assert changed(rows_of(output), rows_of(after)) == [(item, token)]
            assert changed(found.signals[signal], seen.signals[signal]) == [(item, token)]
    for hook in hooks:
        hook.remove()


def changed(before: list[Tensor], after: list[Tensor]) -> list[tuple[int, int]]:
    """Items and tokens whose features differ."""
    return [
        (i, int(t))
        for i, (a, b) in enumerate(zip(before, after, strict=True))
        for t in ((a - b).abs().flatten(1).amax(1) > 1e-6).nonzero()[:, 0]
    ]


def places_of(
    kind: str, modality: str, parts: Parts, inputs: dict[str, Any], layouts: list[Layout], item: int, token: int
) -> list[Any]:
    """Where a token's pixels are in the model's input, by its place in the layout."""
    g, row, col = layouts[item].coordinates[token].tolist()
    grid = layouts[item].grids[g]

    def block(rows: int, cols: int, r: int, c: int, height: int, width: int) -> tuple[slice, slice]:
        h, w = height // rows, width // cols
        return slice(r * h, (r + 1) * h), slice(c * w, (c + 1) * w)

    if kind in SQUARES:
        return [(item, slice(None), *block(grid.rows, grid.cols, row, col, *inputs["pixel_values"].shape[-2:]))]
    if kind == SIZED:
        height, width = inputs["image_sizes"][item].tolist()
        return [(item, slice(None), *block(grid.rows, grid.cols, row, col, height, width))]
    if kind == TILES and modality == "video":
        size = inputs["pixel_values_videos"].shape[-2:]
        return [(item, g, slice(None), *block(grid.rows, grid.cols, row, col, *size))]
    if kind == TILES:
        return [tile_of(parts, inputs, layouts, item, grid, row, col)]
    if kind == PADDED:
        height, width = inputs["spatial_shapes"][item].tolist()
        return [(item, patch) for patch in cell(height, width, grid.rows, grid.cols, row, col)]
    grids = inputs[f"{modality}_grid_thw"].tolist()
    t, height, width = grids[item]
    start = sum(a * b * c for a, b, c in grids[:item])
    if kind in READ:
        frames = range(t) if len(layouts[item].grids) == 1 else [g]
        patches = cell(height, width, grid.rows, grid.cols, row, col)
        return [start + f * height * width + patch for f in frames for patch in patches]
    unit = height * width // (grid.rows * grid.cols)
    assert (grid.rows * math.isqrt(unit), grid.cols * math.isqrt(unit)) == (height, width)
    first = start + g * height * width + (row * grid.cols + col) * unit
    return [slice(first, first + unit)]


def cell(height: int, width: int, rows: int, cols: int, row: int, col: int) -> list[int]:
    """Patches of one of `rows` x `cols` cells, where they are counted row by row."""
    h, w = height // rows, width // cols
    return [(row * h + y) * width + col * w + x for y in range(h) for x in range(w)]


def tile_of(
    parts: Parts, inputs: dict[str, Any], layouts: list[Layout], item: int, grid: Any, row: int, col: int
) -> tuple[Any, ...]:
    """The patch of the whole picture or of a tile, whose outermost rows or columns are padding."""
    sizes, side = inputs["image_sizes"].tolist(), 4
    down, across = tile_shape(VisionCall(parts.core, "image", {}), sizes[item])
    tile = 0
    if grid.kind == "mosaic":
        row, col = row + (down * side - grid.rows) // 2, col + (across * side - grid.cols) // 2
        tile, row, col = 1 + row // side * across + col // side, row % side, col % side
    patch = inputs["pixel_values"].shape[-1] // side
    return (item, tile, slice(None), slice(row * patch, (row + 1) * patch), slice(col * patch, (col + 1) * patch))
