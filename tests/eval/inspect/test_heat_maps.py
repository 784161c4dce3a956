"""``vtc show --signal``: the map over the picture is the signal of each token."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_world import TOKENS, png, world
from methods import tiny_explainer
from PIL import Image

from vtc.commands.main import main
from vtc.eval.inspect.heat_maps import (
    SCALE,
    Heat,
    draw_heat,
    draw_scale,
    find_heat,
    grid_maps,
    half_of,
    hottest,
    scaled,
    token_values,
)
from vtc.eval.inspect.kept_tokens import draw_panel, font
from vtc.eval.inspect.relevance import Explanation, explain, inputs_of
from vtc.eval.tasks.media.images import open_image
from vtc.eval.tasks.questions import Question
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.prompts import make_row
from vtc.pruners.explainer import load_network
from vtc.pruners.layout import Grid, Layout

ASKED = "what color is the circle?"


def test_maps_follow_the_layout() -> None:
    layout = Layout((Grid(2, 2), Grid(2, 1, newline="row")))  # ids 0-3, then 4 + newline 5, 6 + newline 7
    one, two, three = grid_maps([layout, Layout((Grid(1, 2),))], [torch.arange(8.0), torch.tensor([8.0, 9.0])])
    assert one.tolist() == [[0, 1], [2, 3]]
    assert two.tolist() == [[4], [6]]
    assert three.tolist() == [[8, 9]]


def test_colours_and_the_half() -> None:
    x = torch.tensor([0.0, 1, 4, 16])
    found = scaled(x)
    assert found[0] == 0
    assert found[3] == 1
    assert torch.allclose(found[2] / found[1], torch.tensor(2.0))  # roots
    assert (scaled(torch.zeros(3)) == 0).all()
    assert [half_of(v) for v in (x, torch.ones(5), torch.zeros(4))] == [1, 3, 0]


def test_hot_patches_are_bright_and_the_picture_shows_through() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8))
    drawn = np.asarray(draw_heat(picture, np.array([[0.0, 1.0], [0.5, 0.0]]), 6)).astype(float)
    assert drawn.shape == (12, 12, 3)
    cold, hot, warm = drawn[:6, :6], drawn[:6, 6:], drawn[6:, :6]
    assert hot.mean() > warm.mean() > cold.mean()
    assert np.abs(cold - cold[..., :1]).max() <= 3, "without heat it is grey"
    assert cold.std() > 10


def test_newline_tokens_have_no_value() -> None:
    layout = Layout((Grid(2, 2, newline="row"),))
    a = torch.tensor([0.1, 0.3, 0.7, 0.2, 0.4, 0.9])
    found = Explanation([a], [a], [layout], torch.tensor([1]), 4, 64)
    assert token_values(found, "relevance")[0].tolist() == a.masked_fill(layout.newline, 0).tolist()
    [predicted] = token_values(found, "predicted", tiny_explainer())
    network, _ = load_network(tiny_explainer())
    assert torch.allclose(predicted[~layout.newline], network(a[~layout.newline][None])[0].softmax(-1))
    assert (predicted[layout.newline] == 0).all()


def test_each_signal_is_what_it_says() -> None:
    loaded, image = load_model(str(world()[0])), open_image(png(3))
    shown = find_heat(loaded, ["relevance", "attention", "predicted"], image, ASKED, tiny_explainer(), 2)
    row = make_row(loaded.processor, loaded.model.config, image, Question("q", "t", "i", ASKED, ""))
    want = explain(loaded.model, inputs_of(row), max_new_tokens=2)
    for (heat, pictures), values in zip(shown, (want.relevance[0], want.attention[0]), strict=False):
        assert heat.total == TOKENS
        assert np.allclose(heat.maps[0], scaled(values).view(4, 4), atol=1e-4)
        assert f"half of it on {half_of(values)} of {TOKENS} visual tokens" in heat.note
        assert len(pictures) == len(heat.maps) == 1
    assert [heat.signal for heat, _ in shown] == ["relevance", "attention", "predicted"]


def test_the_command_draws_signals_beside_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "heat.png"
    with pytest.raises(SystemExit) as stop:
        main(["show", "--signal", "relevance", "--signal", "predicted", "--weights", tiny_explainer(), "--model",
              str(world()[0]), "--pruner", "uniform(keep=4)", "--question", ASKED, "--out", str(out)])  # fmt: skip
    assert stop.value.code == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["relevance", "predicted", "uniform(keep=4)", "written"]
    assert Image.open(out).width > 3 * 480


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--signal", "relevance", "--keep", "3"], "--keep needs --pruner"),
        (["--signal", "relevance", "--weights", "a.safetensors"], "--weights goes with --signal predicted"),
        (["--signal", "heat"], "--signal 'heat' is unknown: there is relevance, predicted, attention, classes"),
    ],
)
def test_bad_options_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["show", "--model", str(world()[0]), *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_draws_classes_of_the_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "classes.png"
    with pytest.raises(SystemExit) as stop:
        main(["show", "--signal", "classes", "--out", str(out)])
    assert stop.value.code == 0
    counts = re.match(r"classes: (\d+) alive, 0 sink, (\d+) dead of 576 visual tokens", capsys.readouterr().out)
    assert counts is not None
    assert int(counts[1]) + int(counts[2]) == 576
    assert int(counts[2]) > 0
    assert Image.open(out).width > 400


def test_the_scale_has_the_colours_of_the_map_and_says_what_the_hottest_stands_for() -> None:
    values = torch.cat([torch.ones(999), torch.tensor([100.0])])
    assert float(hottest(values)) == pytest.approx(1.0), "a single sink does not set the scale"
    assert scaled(values)[0] == 1
    drawn = np.asarray(draw_scale(0.02)).astype(int)
    cells, patch = SCALE
    hot = np.asarray(draw_heat(Image.new("L", (1, 1), 128), np.ones((1, 1)), 1))[0, 0]
    assert (drawn[1, cells * patch - 3] == hot).all()
    brightness = drawn[1, 2 : cells * patch - 2].sum(-1)
    inner = np.delete(brightness, cells * patch // 2 - 2)  # the mark in the middle
    assert (np.diff(inner) >= 0).all()
    assert (drawn[14:, : cells * patch] < 100).any(), "figures stand below"


@pytest.mark.parametrize("top", [0.034, 0.000123, 1.0])
def test_the_words_of_the_scale_are_whole(top: float) -> None:
    drawn = np.asarray(draw_scale(top)).astype(int)
    words = drawn[17:].sum(-1).min(0)  # below the bar, the darkest of each column
    letters = np.flatnonzero(words < 500)
    wide = font(12).getlength(f"{100 * top:.2g}% or more of the sum, per token")
    assert letters[-1] >= SCALE[0] * SCALE[1] - 12 + wide - 5, "the last letter is there"
    assert letters[-1] < drawn.shape[1] - 1, "and not cut"


def test_a_panel_shows_the_scale_below_its_map() -> None:
    heat = Heat("relevance", [np.zeros((4, 4))], 1, 16, "red", 0.25)
    panel = np.asarray(draw_panel([Image.new("RGB", (56, 56))], heat))
    legend = np.asarray(heat.legend)
    assert (panel[-legend.shape[0] :, : legend.shape[1]] == legend).all()
