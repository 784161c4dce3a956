"""Losses and gradients of a model on labelled prompts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from zoo import prompt
from zoo.tokens import SPECIAL


def labelled(family: str) -> dict[str, Any]:
    """The ragged batch with labels on the text behind the last picture."""
    inputs = prompt(family, "ragged").inputs
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100  # the column before the first label predicts it: a dropped one would do so from zeros
    assert not torch.isin(inputs["input_ids"][:, -4:], torch.tensor(SPECIAL)).any()
    return {**inputs, "labels": labels}


def gradients(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def losses_of_steps(model: nn.Module, inputs: dict[str, Any], learning: Iterable[Tensor]) -> list[float]:
    """Losses of five steps of plain gradient descent."""
    optimizer, losses = torch.optim.SGD([*learning], lr=0.05), []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], atol=tolerance, rtol=1e-3), name
