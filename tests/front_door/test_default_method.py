"""Where no method is named, the default one prunes, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench_world import TOKENS, png, world
from command_line import run
from places import ROOT
from zoo import prompt, tiny

import vtc
from vtc.default_method import KEEP, METHOD, NAME

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def model():
    yield tiny("llava")
    vtc.restore(tiny("llava"))


@pytest.mark.parametrize("keep", [None, 3])
def test_it_is_what_its_name_would_be(model, keep) -> None:
    inputs = prompt("llava", "ragged").inputs
    expected = vtc.compress(model, METHOD, keep=keep or KEEP)(**inputs).logits
    assert torch.equal(vtc.compress(model, keep=keep)(**inputs).logits, expected)
    assert model.vtc.pipeline == vtc.parse(METHOD, keep=keep or KEEP)
    assert (model.vtc.config.pruner, model.vtc.config.keep) == (NAME, keep or KEEP)


def test_for_the_length_of_a_block(model) -> None:
    with vtc.compressed(model):
        assert model.vtc.config.pruner == NAME
    assert not hasattr(model, "vtc")


def test_keep_alone_loads_it() -> None:
    assert vtc.load(world()[0], keep=5).vtc.config.pruner == NAME


def test_a_classifier_is_refused_and_stays_as_it_was() -> None:
    vit = pytest.importorskip("timm").create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    with pytest.raises(ValueError, match=f"default method, {NAME}, is for VLMs; name one for this ViT"):
        vtc.compress(vit)
    assert not hasattr(vit, "vtc")


def test_commands_take_keep_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(png(0))
    asked = ("--model", world()[0], "--question", "what color is y?", "--image", picture, "--keep", 3)
    _, out, _ = run(capsys, "ask", *asked)
    assert f"[{NAME}(keep=3, space='projected'): 3 of {TOKENS} visual tokens" in out
    _, out, _ = run(capsys, "show", "--model", world()[0], "--out", tmp_path / "kept.png")
    assert f"{NAME}(keep={KEEP}, space='projected'): " in out


def test_a_saved_setting_is_not_set_aside_by_keep_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(png(0))
    vtc.load(world()[0], "uniform", keep=4).save_pretrained(tmp_path / "saved")
    asked = ("--model", tmp_path / "saved", "--question", "q", "--image", picture, "--keep", 3)
    code, _, error = run(capsys, "ask", *asked)
    assert code == 2
    assert "comes with a setting: uniform(keep=4)" in error.replace("\n", " ")


def test_the_page_names_it() -> None:
    text = (ROOT / "docs" / "default-method.md").read_text()
    assert f"`{METHOD}`" in text
    assert f"{KEEP:.0%}" in text
