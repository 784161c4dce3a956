"""``vtc show``: kept patches are clear, dropped ones dim, at the right places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bench_world import TOKENS, png, world
from PIL import Image

from vtc.commands.main import main
from vtc.eval.inspect.kept_tokens import GAP, PANEL, TITLE, draw_grid, find_kept, grid_masks, grid_pictures, show_kept
from vtc.eval.tasks.media.images import open_image
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.pruning_settings import make_cell
from vtc.pruners.layout import Grid, Layout


def test_kept_patches_are_clear_and_dropped_ones_dim():
    colours = np.full((4, 4, 3), (200, 60, 220), dtype=np.uint8)
    mask = np.zeros((4, 4), dtype=bool)
    mask[1, 2] = mask[3, 0] = True
    shown = np.asarray(draw_grid(Image.fromarray(colours), mask, 10)).astype(int)
    assert shown.shape == (40, 40, 3)
    for row in range(4):
        for col in range(4):
            patch = shown[row * 10 : row * 10 + 10, col * 10 : col * 10 + 10]
            if mask[row, col]:
                assert (patch == (200, 60, 220)).all()
            else:
                assert patch.max() < 80
                assert (patch == patch[..., :1]).all(), "dropped patches are grey"


def test_masks_follow_the_layout():
    layout = Layout((Grid(2, 2), Grid(2, 3, newline="row")))  # ids 0-3, then 4-6 + newline 7, 8-10 + newline 11
    masks = grid_masks(layout, torch.tensor([3, 4, 7, 10]))
    assert masks[0].tolist() == [[False, False], [False, True]]
    assert masks[1].tolist() == [[True, False, False], [False, False, True]]


def test_pictures_are_what_the_processor_made():
    class Processor:
        class image_processor:
            image_mean, image_std = [0.5] * 3, [0.25] * 3

    image = Image.new("RGB", (30, 10))
    tiles = torch.stack([torch.full((3, 4, 4), -2.0), torch.full((3, 4, 4), 2.0)])
    made = grid_pictures(image, tiles[None], 2, Processor)
    assert [np.asarray(p).mean() for p in made] == [0.0, 255.0]
    assert grid_pictures(image, tiles, 3, Processor) == [image] * 3  # grids over the whole image
    assert grid_pictures(image, torch.zeros(12, 24), 1, Processor) == [image]  # packed patches


@pytest.mark.parametrize("method", ["random", "uniform", "fastv"])
def test_the_picture_shows_what_the_report_says(method: str, tmp_path: Path):
    loaded = load_model(str(world()[0]))
    image = open_image(png(3))
    cell = make_cell(method, 5)
    kept, pictures = find_kept(loaded, cell, image, "what color is the circle?", 2)
    assert (kept.kept, kept.total, int(kept.masks[0].sum())) == (5, TOKENS, 5)
    assert np.abs(np.asarray(pictures[0]).astype(int) - np.asarray(image)).max() <= 2
    out = tmp_path / "kept.png"
    show_kept(loaded, [cell, cell], image, "what color is the circle?", out)
    sheet = np.asarray(Image.open(out)).astype(int)
    patch = PANEL // 4
    clear = np.asarray(pictures[0].resize((4 * patch,) * 2, Image.Resampling.BICUBIC)).astype(int)
    for left in (GAP, GAP + 4 * patch + GAP):
        panel = sheet[GAP + TITLE :, left:][: 4 * patch, : 4 * patch]
        same = (np.abs(panel - clear).max(-1) <= 1).reshape(4, patch, 4, patch).mean((1, 3))
        assert ((same > 0.99) == kept.masks[0]).all()
    assert list(tmp_path.iterdir()) == [out]


def test_command_with_the_bundled_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "kept.png"
    with pytest.raises(SystemExit) as stop:
        main(["show", "--pruner", "uniform(keep=64)", "--out", str(out)])
    assert stop.value.code == 0
    assert "64 of 576 visual tokens before the language model" in capsys.readouterr().out
    assert Image.open(out).size[1] > 480


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (["--pruner", "uniform(keep=4)"], "kept"),
        (["--signal", "attention"], "attention"),
        (["--signal", "attention", "--pruner", "uniform(keep=4)"], "attention-kept"),
    ],
)
def test_the_file_is_named_after_what_it_shows_and_replaces_none(
    asked: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    for file in (f"{name}.png", f"{name}-2.png"):
        with pytest.raises(SystemExit) as stop:
            main(["show", "--model", str(world()[0]), "--question", "what?", *asked])
        assert stop.value.code == 0
        assert f"written: {file}" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{name}-2.png", f"{name}.png"]
