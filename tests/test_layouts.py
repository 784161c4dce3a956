"""Layouts and alignments, proved: pictures of their own coordinates go through the models' code to where a layout says.

The tower is replaced by one that only averages the pixels of each patch, learned projections by the identity. What is
between (tiling, unpadding, pixel shuffle, pooling, patch merging, window order, packing) is the model's own.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from vision_tools import call, features, ready, rows_of
from zoo import FAMILIES

from vtc.models.families import FAMILIES as TABLE
from vtc.models.families import Family, family_of, supported_families
from vtc.models.layouts import VisionCall
from vtc.models.locate import locate
from vtc.pruners.layout import Grid, Layout

pytestmark = pytest.mark.usefixtures("no_grad")
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


def run(name: str, model: nn.Module, inputs: dict[str, Any], modality: str = "image") -> tuple[Any, Any, Any, Any]:
    parts = SimpleNamespace(core=model.base_model, family=family_of(model.config))
    tokens = rows_of(features(parts.core, inputs, modality))
    if hasattr(parts.core, "image_seq_len"):
        tokens = [t for f in tokens for t in f.split(parts.core.image_seq_len)]
    asked = call(parts, inputs, modality, [len(t) for t in tokens])
    return parts.family, asked, parts.family.layouts_of(asked), tokens


@pytest.mark.parametrize(("name", "prefix"), [("llava", 1), ("llava_siglip", 0)])
def test_llava(name: str, prefix: int) -> None:
    model = ready(name)
    tower = stub(model, prefix)
    model.base_model.multi_modal_projector = nn.Identity()
    inputs = {"pixel_values": torch.stack([picture(28, 28, i) for i in range(3)])}
    family, asked, layouts, tokens = run(name, model, inputs)
    for i, (layout, made) in enumerate(zip(layouts, tokens, strict=True)):
        assert layout == Layout((Grid(4, 4),))
        check(layout, made, (7, 7), i)
    same_patches(family, asked, tower.rows, tokens)


def test_llava_that_keeps_its_class_token() -> None:
    model = ready("llava")
    model.config.vision_feature_select_strategy = "full"
    stub(model, 1)
    model.base_model.multi_modal_projector = nn.Identity()
    _, _, layouts, tokens = run("llava", model, {"pixel_values": picture(28, 28, 3)[None]})
    assert layouts[0].grids[0].kind == "cls"
    assert (tokens[0][0] == 0).all()
    check(Layout(layouts[0].grids[1:]), tokens[0][1:], (7, 7))


def mosaic(down: int, across: int) -> Tensor:
    """A base tile and the tiles of one picture of coordinates, in reading order."""
    whole = picture(28 * down, 28 * across)
    tiles = [whole[:, 28 * r : 28 * (r + 1), 28 * c : 28 * (c + 1)] for r in range(down) for c in range(across)]
    return torch.stack([picture(28, 28, 5), *tiles])


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
    family, asked, layouts, tokens = run(name, model, inputs)
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
    family, asked, layouts, tokens = run("llava_onevision", model, inputs)
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
    family, asked, layouts, tokens = run("llava_onevision", model, inputs)
    assert layouts == [Layout((Grid(4, 4, newline="end"),))] * 2
    for i, made in enumerate(tokens):
        check(layouts[i], made, (7, 7), i)
    same_patches(family, asked, tower.rows, tokens)


def test_onevision_video() -> None:
    model = ready("llava_onevision")
    tower = stub(model, 0)
    model.base_model.multi_modal_projector = nn.Identity()
    clips = torch.stack([torch.stack([picture(28, 28, 10 * v + f) for f in range(3)]) for v in range(2)])
    family, asked, layouts, tokens = run("llava_onevision", model, {"pixel_values_videos": clips}, "video")
    for v, (layout, made) in enumerate(zip(layouts, tokens, strict=True)):
        assert [g.newline for g in layout.grids] == ["none", "none", "end"]
        check(layout, made, (14, 14))
        frames = layout.coordinates[~layout.newline, 0]
        assert torch.equal(made[~layout.newline, 0], 10.0 * v + frames)
    asked.lengths = [len(t) for t in tokens]
    same_patches(family, asked, tower.rows, tokens)


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
    family, asked, layouts, tokens = run(name, model, inputs)
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
    family, asked, layouts, tokens = run(name, model, {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)})
    cell = 14 if name == "mistral3" else 7
    for i, (layout, made) in enumerate(zip(layouts, tokens, strict=True)):
        assert layout == Layout((Grid(sizes[i][0] // cell, sizes[i][1] // cell),))
        check(layout, made, (cell, cell), i)
    same_patches(family, asked, tower.rows, tokens)


class PatchMean(nn.Module):
    """In place of Qwen's patch embedding: the mean of each patch's channels."""

    def __init__(self, width: int):
        super().__init__()
        self.width, self.dtype_is_read_from = width, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(len(x), 3, -1).mean(-1)
        return nn.functional.pad(x, (0, self.width - 3))


class UnitMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 4, x.shape[-1]).mean(1)


def qwen_stub(name: str) -> nn.Module:
    model = ready(name)
    visual = model.base_model.visual
    visual.patch_embed = PatchMean(32)
    visual.blocks = nn.ModuleList()
    visual.merger = UnitMean()
    if hasattr(visual, "pos_embed"):
        nn.init.zeros_(visual.pos_embed.weight)
    return model


def qwen_check(name: str, modality: str, model: nn.Module, inputs: dict[str, Any], first: int) -> None:
    entered: list[Tensor] = []
    hook = model.base_model.visual.merger.register_forward_pre_hook(lambda m, a: entered.append(a[0]))
    family, asked, layouts, tokens = run(name, model, inputs, modality)
    hook.remove()
    for i, (layout, made) in enumerate(zip(layouts, tokens, strict=True)):
        check(layout, made[:, :3], (8, 8))
        assert torch.allclose(made[:, 0], first + 10.0 * i + layout.coordinates[:, 0])
    same_patches(family, asked, entered[0][:, :3], [t[:, :3] for t in tokens])


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_qwen_images_from_the_processor(name: str) -> None:
    processor = transformers.Qwen2VLImageProcessor(
        patch_size=4, temporal_patch_size=2, merge_size=2, do_resize=False, do_rescale=False, do_normalize=False
    )
    pictures = [
        picture(h, w, 10 * i).numpy().astype(np.float32) for i, (h, w) in enumerate([(32, 48), (16, 16), (24, 8)])
    ]
    made = processor(images=pictures, return_tensors="pt", do_convert_rgb=False, input_data_format="channels_first")
    assert made["image_grid_thw"].tolist() == [[1, 8, 12], [1, 4, 4], [1, 6, 2]]
    qwen_check(name, "image", qwen_stub(name), dict(made), 0)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_qwen_videos(name: str) -> None:
    grids = [(3, 8, 12), (2, 4, 4)]
    rows = []
    for i, (t, h, w) in enumerate(grids):
        for f in range(t):
            x = picture(4 * h, 4 * w, 10 * i + f).view(3, h // 2, 2, 4, w // 2, 2, 4)
            rows.append(
                x.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5).expand(-1, -1, -1, -1, 3, 2, 4, 4).reshape(h * w, -1)
            )
    inputs = {"pixel_values_videos": torch.cat(rows), "video_grid_thw": torch.tensor(grids)}
    model = qwen_stub(name)
    qwen_check(name, "video", model, inputs, 0)
    layouts = run(name, model, inputs, "video")[2]
    assert [len(layout.grids) for layout in layouts] == [3, 2]
    assert layouts[0].grids[0] == Grid(4, 6, "frame")


def test_every_family_of_the_zoo_is_in_the_table() -> None:
    for name in FAMILIES:
        assert family_of(ready(name).config) is not None, name
    assert len(supported_families()) == len(set(supported_families())) == 11
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
