"""Gradients where tokens go round layers: those of the masked reference, under checkpoints too, and of the routers."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from gradients_of import gradients, labelled, losses_of_steps, same
from reference import baseline, going_round, hidden_per_layer, loans_of, masked
from routed import Routed
from torch import Tensor, nn
from zoo import FAMILIES, tiny

import vtc

LEARN = {0, 2, 3}  # a gate of the last layer changes visual states alone, behind which no text reads them
LENT = ((0, 0.6), (2, 0.7), (3, 0.3), (5, 0.2))


def lender(model: nn.Module) -> tuple[Routed, dict[str, Tensor]]:
    """The method with routers for `model`, and their parameters."""
    pruner = Routed(lent=LENT)
    routers = pruner.routers(model.config.text_config.hidden_size)
    return pruner, dict(routers.named_parameters())


def of_routers(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
    for p in parameters.values():
        p.grad = None
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_those_of_the_masked_model(family: str) -> None:
    model, inputs = tiny(family), labelled(family)
    width = inputs["input_ids"].shape[1]
    with torch.no_grad():
        positions = baseline(family, "ragged").positions[..., :width]
    pruner, parameters = lender(model)
    asked: dict[str, Any] = {**inputs, "position_ids": positions, "use_cache": False}
    with vtc.compressed(model, pruner):
        loss, found = gradients(model, asked)
        report = model.vtc.report
    ours = of_routers(parameters)
    assert {int(n.split(".")[1]) for n, g in ours.items() if g.any()} == LEARN
    visual = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for span in report.spans:
        visual[span.sample, span.columns] = True
    hidden = hidden_per_layer(report, *visual.shape, 6)
    with ExitStack() as stack:
        stack.enter_context(masked(model, hidden, inputs["attention_mask"].bool()))
        stack.enter_context(going_round(model, hidden, visual, loans_of(report), pruner.gates_of))
        expected, truth = gradients(model, asked)
    assert torch.allclose(loss, expected, atol=1e-5)
    same(found, truth, 1e-4)
    same(ours, of_routers(parameters), 1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen3_vl"])
def test_gradient_checkpointing_changes_nothing(family: str, reentrant: bool) -> None:
    model, inputs = tiny(family).train(), labelled(family)
    pruner, parameters = lender(model)
    vtc.compress(model, pruner)
    loss, plain = gradients(model, inputs)
    ours = of_routers(parameters)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    again, checkpointed = gradients(model, inputs)
    assert torch.allclose(loss, again, atol=1e-6)
    same(plain, checkpointed, 1e-5)
    same(ours, of_routers(parameters), 1e-5)
    # other forwards before a backward pass, one of text alone: each layer runs anew with its own gates
    first = model(**inputs).loss
    model(**{**inputs, "pixel_values": inputs["pixel_values"].flip(0)})
    model(input_ids=inputs["input_ids"][:, -2:])
    model.zero_grad(set_to_none=True)
    first.backward()
    same(plain, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, 1e-5)
    same(ours, of_routers(parameters), 1e-5)
    vtc.restore(model)
    for layer in model.base_model.language_model.layers:
        assert "_around" not in repr(vars(layer).get("_gradient_checkpointing_func"))


def test_steps_lower_the_loss_and_move_the_routers() -> None:
    model, inputs = tiny("llava").train(), labelled("llava")
    pruner, parameters = lender(model)
    vtc.compress(model, pruner)
    before = {n: p.detach().clone() for n, p in parameters.items()}
    losses = losses_of_steps(model, inputs, [*model.parameters(), *parameters.values()])
    assert losses[-1] < losses[0]
    moved = {int(n.split(".")[1]) for n, p in parameters.items() if not torch.equal(p, before[n])}
    assert moved == LEARN
