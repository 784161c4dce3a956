"""State of a model that its owner may change after wrapping: honoured, or refused in words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contracts import TOLERANCE
from methods import BOTH_STAGES, IN_THE_TOWER, METHODS, READING, Setting, fits
from reference import greedy
from torch import nn
from zoo import FAMILIES, prompt, tiny

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")
TAPPING = [s for s in (*METHODS, IN_THE_TOWER) if s.in_the_tower or any(
    signal for c in vtc.parse(s.pruner, keep=s.keep, **s.params) for signal in c.signals)]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), [("eager", "sdpa"), ("sdpa", "eager")])
@pytest.mark.parametrize("setting", TAPPING, ids=str)
def test_attention_switched_after_wrapping(setting: Setting, before: str, after: str) -> None:
    family = "llava" if fits(setting, "llava") else "qwen2_5_vl"
    inputs = prompt(family, "one").inputs
    fresh = vtc.compress(tiny(family, after), setting.pruner, keep=setting.keep, **setting.params)
    right, report = fresh(**inputs).logits, fresh.vtc.report
    model = vtc.compress(tiny(family, before), setting.pruner, keep=setting.keep, **setting.params)
    model.set_attn_implementation(after)
    assert (model(**inputs).logits - right).abs().max() < TOLERANCE
    assert str(model.vtc.report) == str(report)
    assert repr(report) == f"<Report: {report}>"
    vtc.restore(model)
    assert model.model.language_model.layers[0].self_attn.config._attn_implementation == after


@pytest.mark.parametrize("setting", [READING, IN_THE_TOWER], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_switched_after_wrapping_on_every_family(family: str, setting: Setting) -> None:
    if not fits(setting, family):
        pytest.skip("its tower can't be pruned")
    inputs = prompt(family, "ragged").inputs
    model = vtc.compress(tiny(family, "eager"), setting.pruner)
    model.set_attn_implementation("sdpa")
    fresh = vtc.compress(tiny(family, "sdpa"), setting.pruner)
    assert (model(**inputs).logits - fresh(**inputs).logits).abs().max() < TOLERANCE


def to_double(model: nn.Module) -> Any:
    return model.double()


def to_bfloat16(model: nn.Module) -> Any:
    return model.to(torch.bfloat16)


def resized(model: nn.Module) -> Any:
    torch.manual_seed(0)
    return model.resize_token_embeddings(120, mean_resizing=False)


def other_placeholder(model: nn.Module) -> Any:
    model.config.image_token_id = 95


CHANGES: list[Callable[[nn.Module], Any]] = [to_double, to_bfloat16, resized, other_placeholder]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_changed_after_wrapping_equals_wrapped_after_the_change(family: str, change: Callable[..., Any]) -> None:
    inputs = prompt(family, "one").inputs
    dtype = {to_double: torch.float64, to_bfloat16: torch.bfloat16}.get(change, torch.float32)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    if change is other_placeholder:
        inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == 90, 95)
    first = tiny(family)
    change(first)
    right = greedy(vtc.compress(first, READING.pruner), inputs, 3).logits
    model = vtc.compress(tiny(family), READING.pruner)
    change(model)
    assert torch.equal(greedy(model, inputs, 3).logits, right)
    assert model.vtc.report.tokens_kept < model.vtc.report.tokens_total > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_after_wrapping(family: str) -> None:
    """train(), gradient checkpointing and eval(), all after wrapping: the same loss and gradients as wrapped before."""
    inputs = prompt(family, "one").inputs

    def gradients(model: nn.Module) -> Any:
        with torch.enable_grad():
            model.zero_grad()
            loss = model(**inputs, labels=inputs["input_ids"], use_cache=False).loss
            loss.backward()
        return loss.item(), model.get_input_embeddings().weight.grad.clone()

    model = tiny(family)
    for part in (model.config, *(getattr(model.config, n) for n in ("text_config", "vision_config"))):
        part.attention_dropout = 0.0
    vtc.compress(model, BOTH_STAGES.pruner)
    plain = gradients(model)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = gradients(model)
    model.gradient_checkpointing_disable()
    model.eval()
    assert abs(trained[0] - plain[0]) < TOLERANCE
    assert (trained[1] - plain[1]).abs().max() < TOLERANCE
    assert gradients(model)[0] == plain[0]


STRATEGY, LAYER = "vision_feature_select_strategy", "vision_feature_layer"
NEEDS_NOTHING, BY_ENCODER = Setting("divprune(keep=6)"), Setting("cls(keep=6)")


def configured(model: nn.Module, name: str, value: Any) -> nn.Module:
    model = copy.deepcopy(model)
    setattr(model.config, name, value)
    return model


@pytest.mark.parametrize("place", ["call", "config"])
@pytest.mark.parametrize("setting", [NEEDS_NOTHING, BY_ENCODER], ids=str)
def test_the_class_token_asked_for_later(setting: Setting, place: str) -> None:
    """vision_feature_select_strategy="full": 17 tokens and not 16, and signals that know the class token's place."""
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    ids = inputs["input_ids"]
    where = int((ids == 90).nonzero()[0, 1])
    ids = torch.cat([ids[:, :where], torch.tensor([[90]]), ids[:, where:]], 1)
    inputs = dict(inputs, input_ids=ids, attention_mask=torch.ones_like(ids))
    right = vtc.compress(configured(model, STRATEGY, "full"), setting.pruner)
    expected = right(**inputs).logits
    vtc.compress(model, setting.pruner)
    if place == "config":
        model.config.vision_feature_select_strategy = "full"
    got = model(**inputs, **({STRATEGY: "full"} if place == "call" else {})).logits
    assert torch.equal(got, expected)
    assert model.vtc.report.tokens_total == 17
    assert torch.equal(model.vtc.report.steps[0].kept[0], right.vtc.report.steps[0].kept[0])


@pytest.mark.parametrize("place", ["call", "config"])
def test_another_layer_of_the_encoder_asked_for_later(place: str) -> None:
    """Followed by methods that read none of it or name their layer; others say what to do."""
    inputs = prompt("llava", "one").inputs

    def ask(setting: Setting) -> Any:
        model = vtc.compress(tiny("llava"), setting.pruner)
        if place == "config":
            model.config.vision_feature_layer = -3
        return model(**inputs, **({LAYER: -3} if place == "call" else {})).logits

    right = vtc.compress(configured(tiny("llava"), LAYER, -3), NEEDS_NOTHING.pruner)(**inputs).logits
    assert torch.equal(ask(NEEDS_NOTHING), right)
    for setting in (BY_ENCODER, IN_THE_TOWER):
        with pytest.raises(NotImplementedError, match=r"vision_feature_layer=-3.*vtc.compress"):
            ask(setting)
