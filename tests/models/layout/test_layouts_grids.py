"""Layouts, alignments and projectors of families whose grids are Qwen-VL's, on small models of their configurations."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from layout_tools import check, picture
from torch import Tensor, nn
from transformers import CONFIG_MAPPING
from vision_tools import features, record, rows_of

from vtc.eval.check.check_job import small_model
from vtc.eval.check.tiny_model.config_source import config_of
from vtc.models.layout.families import FAMILIES
from vtc.models.layout.layouts_by_family import qwen
from vtc.models.layout.model_parts import Parts, locate
from vtc.models.layout.run_projector import project, projector_of
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import EncoderAttention, EncoderKeys, EncoderValues, PreProjector

pytestmark = pytest.mark.usefixtures("no_grad")
ROWS = [f for f in FAMILIES if f.layouts is qwen and f.projector.startswith("visual.")]
TYPES = [t for f in ROWS for t in f.model_types if t in CONFIG_MAPPING]
IMAGES = [(1, 8, 12), (1, 4, 4), (1, 4, 8)]
VIDEOS = [(3, 8, 12), (2, 4, 4)]
PROCESSORS = (
    "Qwen2VLImageProcessor",
    "Glm4vImageProcessor",
    "Glm46VImageProcessor",
    "GlmgaImageProcessor",
    "CohereCompassImageProcessor",
    "VideoLlama3ImageProcessor",
    "MiniMaxM3VLImageProcessor",
)
IN_READING_ORDER = ("PaddleOCRVLImageProcessor", "Kimi_K25ImageProcessor")


@lru_cache(maxsize=2)
def small(kind: str) -> tuple[Parts, int]:
    """A small model and how many numbers make a patch."""
    model, prompts, _ = small_model(config_of(kind))
    return locate(model), prompts["ragged"].inputs["pixel_values"].shape[1]


def inputs_of(kind: str, modality: str, seed: int = 0) -> tuple[Parts, dict[str, Any], list[tuple[int, int, int]]]:
    parts, length = small(kind)
    grids = IMAGES if modality == "image" else VIDEOS
    rows = sum(t * h * w for t, h, w in grids)
    pixels = torch.randn(rows, length, generator=torch.Generator().manual_seed(seed))
    name = "pixel_values" if modality == "image" else "pixel_values_videos"
    return parts, {name: pixels, f"{modality}_grid_thw": torch.tensor(grids)}, grids


@pytest.mark.parametrize("modality", ["image", "video"])
@pytest.mark.parametrize("kind", TYPES)
def test_project_gives_the_models_own_features(kind: str, modality: str) -> None:
    parts, inputs, grids = inputs_of(kind, modality)
    output, found = record(parts, inputs, modality, signals=[PreProjector()])
    for patches, made in zip(found.signals[PreProjector()], rows_of(output), strict=True):
        assert patches.shape[:2] == (len(made), parts.family.unit(parts.config))
        assert torch.allclose(project(parts, patches), made, atol=1e-4, rtol=1e-4)
    assert len(list(projector_of(parts).parameters())) > 0
    kinds = "frame" if modality == "video" else "image"
    assert [lay.grids for lay in found.layouts()] == [(Grid(h // 2, w // 2, kinds),) * t for t, h, w in grids]


@pytest.mark.parametrize("modality", ["image", "video"])
@pytest.mark.parametrize("kind", TYPES)
def test_tokens_follow_the_units_of_the_input(kind: str, modality: str) -> None:
    """Without attention, other pixels of the unit at a place change the token at that place, and no other."""
    parts, inputs, grids = inputs_of(kind, modality)
    parts = locate(deepcopy(parts.model))
    parts.tower.blocks = nn.ModuleList()
    pixels = next(iter(inputs.values()))
    before = torch.cat(rows_of(features(parts.core, inputs, modality)))
    assert len(before) == sum(t * h * w for t, h, w in grids) // 4
    for unit in range(0, len(before), 3):
        other = pixels.clone()
        other[4 * unit : 4 * unit + 4] += 1.0
        after = torch.cat(rows_of(features(parts.core, {**inputs, next(iter(inputs)): other}, modality)))
        assert ((after - before).abs().amax(-1) > 1e-6).nonzero()[:, 0].tolist() == [unit]


@pytest.mark.parametrize("name", PROCESSORS + IN_READING_ORDER)
def test_units_of_the_processors(name: str) -> None:
    """Units, or patches, come row by row: their means are where the layout says."""
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    row_by_row = name in IN_READING_ORDER
    options = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    processor = getattr(transformers, name)(
        patch_size=4, merge_size=2, **options, **({} if row_by_row else {"temporal_patch_size": 2})
    )
    sizes = [(32, 48), (16, 16), (24, 8)]
    pictures = [picture(h, w, 10 * i).numpy().astype(np.float32) for i, (h, w) in enumerate(sizes)]
    made = processor(images=pictures, return_tensors="pt", do_convert_rgb=False, input_data_format="channels_first")
    assert made["image_grid_thw"].tolist() == [[1, h // 4, w // 4] for h, w in sizes]
    each, side = (1, 4) if row_by_row else (4, 8)
    units: Tensor = (
        made["pixel_values"].flatten(1).view(-1, each, 3, side * side // each * (2 - row_by_row)).mean((1, 3))
    )
    for i, (h, w) in enumerate(sizes):
        own, units = units.split([h * w // side**2, len(units) - h * w // side**2])
        check(Layout((Grid(h // side, w // side),)), own, (side, side), 10 * i)


@pytest.mark.skipif("exaone4_5" not in TYPES, reason="the only tower with grouped heads is newer")
def test_grouped_heads_of_a_tower() -> None:
    """Attention, keys and values are those of every head of the queries, some of which read the same."""
    parts, inputs, _ = inputs_of("exaone4_5", "image")
    tower = parts.config.vision_config
    heads, groups = tower.num_heads, tower.num_key_value_heads
    assert groups < heads
    attention, keys, values = EncoderAttention(queries="received"), EncoderKeys(), EncoderValues()
    _, found = record(parts, inputs, signals=[attention, keys, values])
    for received, k, v in zip(*(found.signals[s] for s in (attention, keys, values)), strict=True):
        assert received.shape[0] == heads
        assert torch.allclose(received.sum(1) * 4, torch.ones(heads), rtol=1e-3)  # patches of a token are averaged
        for read in (k, v):
            by_group = read.unflatten(-1, (groups, heads // groups, tower.hidden_size // heads))
            assert torch.equal(by_group, by_group[..., :1, :].expand_as(by_group))
            assert not torch.equal(by_group[..., 0, 0, :], by_group[..., 1, 0, :])
