"""Layouts and alignments, proved: pictures of their own coordinates go through the models' code to where a layout says.

Here one square or one size per picture; tiles and Qwen-VL have files of their own.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from layout_tools import Mean, check, picture, run, same_patches, stub
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from vision_tools import ready
from zoo import FAMILIES

from vtc.models.layout.families import FAMILIES as TABLE
from vtc.models.layout.families import family_of, supported_families
from vtc.models.layout.family import Family
from vtc.models.layout.layouts_by_family import VisionCall
from vtc.models.layout.model_parts import locate
from vtc.pruners.layout import Grid, Layout

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize(("name", "prefix"), [("llava", 1), ("llava_siglip", 0)])
def test_llava(name: str, prefix: int) -> None:
    model = ready(name)
    tower = stub(model, prefix)
    model.base_model.multi_modal_projector = nn.Identity()
    inputs = {"pixel_values": torch.stack([picture(28, 28, i) for i in range(3)])}
    family, asked, layouts, tokens = run(model, inputs)
    for i, (layout, made) in enumerate(zip(layouts, tokens, strict=True)):
        assert layout == Layout((Grid(4, 4),))
        check(layout, made, (7, 7), i)
    same_patches(family, asked, tower.rows, tokens)


def test_llava_that_keeps_its_class_token() -> None:
    model = ready("llava")
    model.config.vision_feature_select_strategy = "full"
    stub(model, 1)
    model.base_model.multi_modal_projector = nn.Identity()
    _, _, layouts, tokens = run(model, {"pixel_values": picture(28, 28, 3)[None]})
    assert layouts[0].grids[0].kind == "cls"
    assert (tokens[0][0] == 0).all()
    check(Layout(layouts[0].grids[1:]), tokens[0][1:], (7, 7))


@pytest.mark.parametrize("name", ["idefics3", "smolvlm", "internvl", "gemma3"])
def test_merged_squares(name: str) -> None:
    model = ready(name)
    core = model.base_model
    side, patch = {"internvl": (28, 7), "gemma3": (56, 7)}.get(name, (32, 4))
    tower = stub(model, 1 if name == "internvl" else 0, patch)
    pictures = torch.stack([picture(side, side, i + 1) for i in range(3)])
    inputs: dict[str, Any] = {"pixel_values": pictures}
    if name == "internvl":
        core.multi_modal_projector = Mean()
    elif name == "gemma3":
        core.multi_modal_projector.mm_soft_emb_norm = nn.Identity()
        core.multi_modal_projector.mm_input_projection_weight = nn.Parameter(torch.eye(3))
    else:
        core.connector.modality_projection = Mean()
        inputs = {"pixel_values": torch.stack([pictures[:2], torch.stack([pictures[2], torch.zeros(3, side, side)])])}
    family, asked, layouts, tokens = run(model, inputs)
    assert len(layouts) == 3
    for i, (layout, made) in enumerate(zip(layouts, tokens, strict=True)):
        assert layout.grids[0].rows == layout.grids[0].cols
        check(layout, made, (2 * patch, 2 * patch), i + 1)
    same_patches(family, asked, tower.rows, tokens)


@pytest.mark.parametrize("name", ["mistral3", "pixtral"])
def test_own_sizes(name: str) -> None:
    model = ready(name)
    core = model.base_model
    tower = stub(model, 0, packed=True)
    if name == "mistral3":
        projector = core.multi_modal_projector
        projector.norm = projector.act = projector.linear_1 = projector.linear_2 = nn.Identity()
        projector.patch_merger.merging_layer = Mean(channels_last=False)
    else:
        core.multi_modal_projector = nn.Identity()
    sizes = [(56, 28), (28, 28), (42, 56)]
    pixels = torch.zeros(3, 3, 56, 56)
    for i, (h, w) in enumerate(sizes):
        pixels[i, :, :h, :w] = picture(h, w, i)
    family, asked, layouts, tokens = run(model, {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)})
    cell = 14 if name == "mistral3" else 7
    for i, (layout, made) in enumerate(zip(layouts, tokens, strict=True)):
        assert layout == Layout((Grid(sizes[i][0] // cell, sizes[i][1] // cell),))
        check(layout, made, (cell, cell), i)
    same_patches(family, asked, tower.rows, tokens)


def test_every_family_of_the_zoo_is_in_the_table() -> None:
    for name in FAMILIES:
        assert family_of(ready(name).config) is not None, name
    assert len(supported_families()) == len(set(supported_families())) == 27
    assert all(f.layouts and f.align for f in TABLE)
    assert family_of(SimpleNamespace(model_type="bert")) is None


def test_what_cannot_be_read_is_a_line_or_the_square_of_the_configuration() -> None:
    with FakeTensorMode():
        grid = torch.zeros(2, 3, dtype=torch.long, device="cuda")
        sizes = torch.zeros(1, 2, dtype=torch.long, device="cuda")
    for name, given, lengths in (
        ("qwen2_5_vl", {"image_grid_thw": grid}, [4, 9]),
        ("llava_next", {"image_sizes": sizes}, [70]),
        ("mistral3", {"image_sizes": torch.zeros(1, 2, device="meta")}, [12]),
    ):
        parts = locate(ready(name))
        asked = VisionCall(parts.core, "image", given, lengths)
        assert parts.family.layouts_of(asked) == [Layout.line(n) for n in lengths]
    parts = locate(ready("gemma3"))
    assert parts.family.layouts_of(VisionCall(parts.core, "image", {}, [16])) == [Layout((Grid(4, 4),))]


def test_a_layout_that_does_not_add_up_is_a_line() -> None:
    parts = locate(ready("qwen2_vl"))
    asked = VisionCall(parts.core, "image", {"image_grid_thw": torch.tensor([[1, 4, 4], [1, 8, 8]])}, [5, 16])
    assert parts.family.layouts_of(asked) == [Layout.line(5), Layout((Grid(4, 4),))]
    asked = VisionCall(parts.core, "image", {"image_grid_thw": torch.tensor([[1, 4, 4]])}, [4, 16])
    assert parts.family.layouts_of(asked) == [Layout.line(4), Layout.line(16)]
    assert Family.unknown("mine").layouts_of(VisionCall(parts.core, "image", {}, [7])) == [Layout.line(7)]
