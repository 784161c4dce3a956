"""Layouts and alignments of Qwen-VL: merge units, attention windows, video frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from layout_tools import check, picture, run, same_patches
from torch import Tensor, nn
from vision_tools import ready

from vtc.pruners.layout import Grid

pytestmark = pytest.mark.usefixtures("no_grad")


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


def qwen_check(modality: str, model: nn.Module, inputs: dict[str, Any], first: int) -> None:
    entered: list[Tensor] = []
    hook = model.base_model.visual.merger.register_forward_pre_hook(lambda m, a: entered.append(a[0]))
    family, asked, layouts, tokens = run(model, inputs, modality)
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
    qwen_check("image", qwen_stub(name), dict(made), 0)


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
    qwen_check("video", model, inputs, 0)
    layouts = run(model, inputs, "video")[2]
    assert [len(layout.grids) for layout in layouts] == [3, 2]
    assert layouts[0].grids[0] == Grid(4, 6, "frame")
