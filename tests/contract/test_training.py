"""Training with pruned tokens: loss, gradients, gradient checkpointing."""

from __future__ import annotations

import pytest
import torch
from gradients_of import gradients, labelled, losses_of_steps, same
from methods import BOTH_STAGES, READING, Setting
from reference import baseline, hidden_per_layer, masked
from zoo import FAMILIES, tiny

import vtc


@pytest.mark.parametrize("setting", [BOTH_STAGES, READING], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_nothing(family: str, setting: Setting) -> None:
    model, inputs = tiny(family).train(), labelled(family)
    vtc.compress(model, setting.pruner)
    loss, plain = gradients(model, inputs)
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        for asked in ({}, {"use_cache": True}):  # which a checkpointed layer does not fill
            again, checkpointed = gradients(model, inputs | asked)
            assert torch.allclose(loss, again, atol=1e-6)
            same(plain, checkpointed, 1e-5)
        model.gradient_checkpointing_disable()
    assert any("vision" in n or "visual" in n for n in plain), "gradients reach the encoder"
    assert all(torch.isfinite(g).all() for g in plain.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_those_of_the_masked_model(family: str) -> None:
    """The masked reference again, now for the backward pass."""
    model, inputs = tiny(family), labelled(family)
    with torch.no_grad():
        positions = baseline(family, "ragged").positions[..., : inputs["input_ids"].shape[1]]
    with vtc.compressed(model, BOTH_STAGES.pruner):
        loss, pruned = gradients(model, {**inputs, "position_ids": positions, "use_cache": False})
        report = model.vtc.report
    hidden = hidden_per_layer(report, *inputs["input_ids"].shape, 6)
    with masked(model, hidden, inputs["attention_mask"].bool()):
        expected, full = gradients(model, {**inputs, "position_ids": positions, "use_cache": False})
    assert torch.allclose(loss, expected, atol=1e-5)
    same(pruned, full, 1e-4)


def test_keeping_everything_trains_bit_for_bit() -> None:
    model, inputs = tiny("llava"), labelled("llava")
    loss, plain = gradients(model, inputs)
    with vtc.compressed(model, "random", keep=1.0):
        again, wrapped = gradients(model, inputs)
    assert torch.equal(loss, again)
    assert all(torch.equal(plain[n], wrapped[n]) for n in plain)


def test_an_optimizer_step_under_pruning_lowers_the_loss() -> None:
    model, inputs = tiny("llava").train(), labelled("llava")
    vtc.compress(model, READING.pruner)
    losses = losses_of_steps(model, inputs, model.parameters())
    assert losses[-1] < losses[0]
