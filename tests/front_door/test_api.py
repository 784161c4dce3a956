"""The front door: wrap, replace, restore, save, load, and what is refused."""

from __future__ import annotations

import copy
import io
import json
import pickle
import re
import subprocess
import sys

import pytest
import torch
from places import ROOT
from torch import nn
from versions import TAKES_FEATURES
from zoo import prompt, tiny

import vtc
from vtc.config import CONFIG_NAME
from vtc.models.layout.families import supported_families

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def model():
    yield tiny("llava")
    vtc.restore(tiny("llava"))


@pytest.fixture
def inputs():
    return prompt("llava", "ragged").inputs


def kept(model, inputs):
    model(**inputs, use_cache=False)
    return [len(k) for k in model.vtc.report.steps[-1].kept]


def test_compress_works_in_place_and_restore_takes_it_off(model, inputs):
    plain = model(**inputs).logits
    assert vtc.compress(model, "random", keep=3) is model
    assert kept(model, inputs) == [3] * 4
    assert vtc.restore(model) is model
    assert not hasattr(model, "vtc")
    assert torch.equal(model(**inputs).logits, plain)
    vtc.restore(model)  # twice does no harm


def test_reapplying_replaces(model, inputs):
    vtc.compress(model, "random", keep=3)
    kept(model, inputs)  # transformers sets hooks of its own at the first forward
    hooks = count_hooks(model)
    for keep in (5, 7):
        vtc.compress(model, "uniform", keep=keep)
        assert kept(model, inputs) == [keep] * 4
        assert len(model.vtc.report.steps) == 1
    assert count_hooks(model) == hooks


def test_bad_arguments_leave_a_wrapped_model_as_it_was(model, inputs):
    vtc.compress(model, "random", keep=3)
    for bad in (
        {"pruner": "drat", "keep": 2},
        {"pruner": "random", "keep": 0},
        {"pruner": "random"},
        {"pruner": "random", "keep": 2, "layer": 99},
        {"pruner": "fastv", "keep": 2, "layer": 0},
        {"pruner": "random", "keep": 2, "positions": "best"},
        {"pruner": 7},
    ):
        with pytest.raises((ValueError, TypeError)):
            vtc.compress(model, **bad)
        assert kept(model, inputs) == [3] * 4


def test_compressed_returns_to_what_was_there(model, inputs):
    with vtc.compressed(model, "random", keep=2):
        assert kept(model, inputs) == [2] * 4
    assert not hasattr(model, "vtc")
    vtc.compress(model, "uniform", keep=5)
    with pytest.raises(KeyError), vtc.compressed(model, "random", keep=2):
        raise KeyError
    assert kept(model, inputs) == [5] * 4


def test_keep_one_is_one_token_and_keep_one_point_zero_all(model, inputs):
    vtc.compress(model, "random", keep=1)
    assert kept(model, inputs) == [1] * 4
    vtc.compress(model, "random", keep=1.0)
    assert kept(model, inputs) == [16] * 4


def test_pipelines_instances_and_configs(model, inputs):
    vtc.compress(model, "random(keep=0.5) + random(layer=2, keep=0.25)")
    model(**inputs, use_cache=False)
    assert [(s.stage, s.layer, len(s.kept[0])) for s in model.vtc.report.steps] == [
        ("input", None, 8),
        ("decoder", 2, 4),
    ]
    assert model.vtc.report.mean_tokens_per_layer == pytest.approx(4 * (2 * 8 + 4 * 4) / 6)
    vtc.compress(model, vtc.pruner_class("uniform")(keep=3))
    assert kept(model, inputs) == [3] * 4
    vtc.compress(model, vtc.VTCConfig(pruner="random", keep=6, params={"seed": 2}))
    assert kept(model, inputs) == [6] * 4
    assert str(model.vtc.pipeline[0]) == "random(keep=6, seed=2)"


def test_report_is_the_last_prefill(model, inputs):
    vtc.compress(model, "random", keep=4)
    assert model.vtc.report is None
    model.generate(**inputs, max_new_tokens=3, do_sample=False)
    report = model.vtc.report
    assert [(s.sample, s.item, s.modality) for s in report.spans] == [
        (0, 0, "image"),
        (1, 1, "image"),
        (1, 2, "image"),
        (2, 3, "image"),
    ]
    for span in report.spans:
        assert (inputs["input_ids"][span.sample, span.columns] == model.config.image_token_id).all()
    assert report.tokens_total == 64
    assert report.tokens_kept == 16
    assert report.selection_seconds is None
    model.vtc.timing = True
    model(**inputs)
    assert 0 < model.vtc.report.selection_seconds < 10
    text = prompt("llava", "text").inputs
    model.generate(**text, max_new_tokens=3, do_sample=False)
    assert model.vtc.report.spans == []
    assert model.vtc.report.steps == []


def test_saving_and_loading_carry_the_setup(model, inputs, tmp_path):
    vtc.compress(model, "random", keep=0.25, seed=7)
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG_NAME).read_text())["params"] == {"seed": 7}
    again = vtc.load(tmp_path)
    assert torch.allclose(again(**inputs).logits, expected, atol=1e-5)
    assert again.vtc.config == model.vtc.config
    assert not hasattr(vtc.load(tmp_path, "uniform", keep=1.0).vtc.report, "spans")
    assert vtc.load(tmp_path, keep=2).vtc.pipeline[0].keep == 2
    vtc.restore(model)
    model.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / CONFIG_NAME).exists()
    assert not hasattr(vtc.load(tmp_path / "plain"), "vtc")


def test_load_refuses_before_reading_the_model(tmp_path):
    with pytest.raises(ValueError, match="unknown pruner"):
        vtc.load(tmp_path / "nowhere", "drat", keep=3)


def save(model):
    torch.save(model, io.BytesIO())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, pickle.dumps, save])
def test_a_wrapped_model_is_not_copied_by_accident(model, inputs, duplicate):
    vtc.compress(model, "fastv", keep=3)
    kept(model, inputs)  # transformers' hooks can't be pickled either, but must not be what is complained about
    for part in (model, model.model, model.model.language_model):
        with pytest.raises(TypeError, match=r"call vtc\.restore\(model\) first"):
            duplicate(part)
    assert kept(model, inputs) == [3] * 4


def test_a_restored_model_is_copied_and_pickled_as_before(model, inputs):
    fresh = pickle.loads(pickle.dumps(vtc.restore(vtc.compress(model, "fastv", keep=3))))
    plain = model(**inputs).logits
    assert torch.equal(fresh(**inputs).logits, plain)
    assert torch.equal(copy.deepcopy(model)(**inputs).logits, plain)


def test_two_models_are_independent(inputs):
    one, two = tiny("llava"), tiny("llava", "eager")
    with vtc.compressed(one, "random", keep=3), vtc.compressed(two, "random", keep=7):
        assert (kept(one, inputs), kept(two, inputs)) == ([3] * 4, [7] * 4)


def test_unknown_models_are_refused_with_a_way_out():
    class Other(nn.Module):
        pass

    with pytest.raises(NotImplementedError, match=r"VTCConfig\(.*parts"):
        vtc.compress(Other(), "random", keep=3)
    with pytest.raises(TypeError, match="torch module"):
        vtc.compress("a path", "random", keep=3)


def test_parts_name_the_modules_of_an_unknown_family(model, inputs):
    vtc.compress(model, "random", keep=3)
    expected = model(**inputs).logits
    kind, type(model.config).model_type = type(model.config).model_type, "unheard_of"
    try:
        paths = {"core": "model", "lm": "model.language_model", "tower": "model.vision_tower"}
        vtc.compress(model, "random", keep=3, parts=paths)
        assert torch.equal(model(**inputs).logits, expected)
        assert model.vtc.config.parts == paths
        with pytest.raises(ValueError, match=r"parts\['lm'\]='model.nothing'"):
            vtc.compress(model, "random", keep=3, parts={"lm": "model.nothing"})
    finally:
        type(model.config).model_type = kind


def test_features_computed_outside_are_used(model, inputs):
    """``mm_encoder_outputs`` made by the plain model, as a benchmark that encodes once would pass them."""
    vtc.compress(model, "uniform", keep=4)
    expected = model(**inputs).logits
    pixels = inputs.pop("pixel_values")
    vtc.restore(model)
    features = model.model.get_image_features(pixels, return_dict=True)
    vtc.compress(model, "uniform", keep=4)
    if not TAKES_FEATURES:
        with pytest.raises(NotImplementedError, match="pass pixel_values"):
            model(**inputs, mm_encoder_outputs={"image": features})
        pytest.skip("transformers < 5.18 ignores mm_encoder_outputs, in unwrapped models too")
    assert torch.equal(model(**inputs, mm_encoder_outputs={"image": features}).logits, expected)


def test_import_is_light():
    code = (
        "import sys, vtc; assert 'torch' not in sys.modules; "
        "vtc.list_pruners(); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_pages_list_every_method_and_family():
    methods, families = ((ROOT / "docs" / name).read_text() for name in ("methods.md", "families.md"))
    assert set(re.findall(r"^\| `(\w+)` \|", methods, re.M)) == set(vtc.list_pruners())
    assert [f for f in supported_families() if f not in families] == []


def count_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
