"""Layouts and alignments of LLaVA-NeXT and LLaVA-OneVision: tiles as a mosaic, newlines, pooled video frames."""

from __future__ import annotations

import pytest
import torch
from layout_tools import NEWLINE, check, mosaic, picture, run, same_patches, stub
from torch import nn
from vision_tools import ready

from vtc.pruners.layout import Grid, Layout

pytestmark = pytest.mark.usefixtures("no_grad")
SIZES = [
    ((40, 50), (2, 2)),
    ((28, 56), (1, 2)),
    ((56, 30), (2, 2)),
    ((56, 20), (2, 1)),
    ((50, 50), (2, 2)),
    ((33, 51), (2, 2)),
    ((20, 60), (1, 2)),
]


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize(("size", "tiles"), SIZES)
def test_tiles(name: str, size: tuple[int, int], tiles: tuple[int, int]) -> None:
    model = ready(name)
    prefix = 1 if name == "llava_next" else 0
    tower = stub(model, prefix)
    model.base_model.multi_modal_projector = nn.Identity()
    two = [mosaic(*tiles), mosaic(2, 2)]
    pixels = torch.zeros(2, 5, 3, 28, 28)
    for i, m in enumerate(two):
        pixels[i, : len(m)] = m
    inputs = {"pixel_values": pixels, "image_sizes": torch.tensor([size, (40, 50)])}
    family, asked, layouts, tokens = run(model, inputs)
    base, rest = layouts[0].grids
    assert (base.kind, base.newline, rest.kind, rest.newline) == ("base", "none", "mosaic", "row")
    check(Layout((base,)), tokens[0][:16], (7, 7), 5)
    # padding was cut away symmetrically, so the mosaic starts this many patches in
    inset = torch.tensor([NEWLINE, (tiles[0] * 4 - rest.rows) // 2 * 7, (tiles[1] * 4 - rest.cols) // 2 * 7])
    inner = tokens[0][16:].clone()
    inner[(inner != NEWLINE).all(-1)] -= torch.tensor([0, *inset[1:].tolist()])
    check(Layout((rest,)), inner, (7, 7))
    same_patches(family, asked, tower.rows, tokens)


def test_onevision_shrinks_large_mosaics() -> None:
    model = ready("llava_onevision")
    tower = stub(model, 0)
    core = model.base_model
    core.multi_modal_projector = nn.Identity()
    model.config.vision_aspect_ratio = "anyres_max_1"
    inputs = {"pixel_values": mosaic(2, 2)[None], "image_sizes": torch.tensor([(56, 56)])}
    family, asked, layouts, tokens = run(model, inputs)
    rest = layouts[0].grids[1]
    assert rest == Grid(4, 4, "mosaic", "row")
    check(Layout((rest,)), tokens[0][16:], (14, 14))
    same_patches(family, asked, tower.rows, tokens)


def test_onevision_several_pictures_of_a_sample() -> None:
    model = ready("llava_onevision")
    tower = stub(model, 0)
    model.base_model.multi_modal_projector = nn.Identity()
    inputs = {
        "pixel_values": torch.stack([picture(28, 28, i) for i in range(2)])[:, None],
        "image_sizes": torch.tensor([(40, 50), (56, 30)]),
        "batch_num_images": torch.tensor([2]),
    }
    family, asked, layouts, tokens = run(model, inputs)
    assert layouts == [Layout((Grid(4, 4, newline="end"),))] * 2
    for i, made in enumerate(tokens):
        check(layouts[i], made, (7, 7), i)
    same_patches(family, asked, tower.rows, tokens)


def test_onevision_video() -> None:
    model = ready("llava_onevision")
    tower = stub(model, 0)
    model.base_model.multi_modal_projector = nn.Identity()
    clips = torch.stack([torch.stack([picture(28, 28, 10 * v + f) for f in range(3)]) for v in range(2)])
    family, asked, layouts, tokens = run(model, {"pixel_values_videos": clips}, "video")
    for v, (layout, made) in enumerate(zip(layouts, tokens, strict=True)):
        assert [g.newline for g in layout.grids] == ["none", "none", "end"]
        check(layout, made, (14, 14))
        frames = layout.coordinates[~layout.newline, 0]
        assert torch.equal(made[~layout.newline, 0], 10.0 * v + frames)
    asked.lengths = [len(t) for t in tokens]
    same_patches(family, asked, tower.rows, tokens)
