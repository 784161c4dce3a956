"""Tokens that go round decoder layers, for the reference: what is not chosen passes, and what the MLP adds is gated.

The gates are those that the method gave while it ran wrapped; what becomes of them is worked out here once more, on the
full sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.layout.model_parts import Parts
from vtc.models.stock.call_arguments import call_of
from vtc.pruners.base import Lent, Pruner

ENDS = ("post_feedforward_layernorm", "post_mlp_layernorm", "mlp")  # of an MLP branch
# by layer what goes round it `[B, L]` bool, and the gates `[B, L]`
Round = Mapping[int, tuple[Tensor, Tensor]]


@contextmanager
def recorded_gates(pipeline: Sequence[Pruner]) -> Iterator[dict[int, tuple[Any, Tensor]]]:
    """Collect, by layer, what the methods were last asked of at a loan, and the gates that they gave."""
    seen: dict[int, tuple[Any, Tensor]] = {}
    with ExitStack() as stack:
        for pruner in pipeline:
            stack.enter_context(_spied(pruner, seen))
        yield seen


@contextmanager
def _spied(pruner: Pruner, seen: dict[int, tuple[Any, Tensor]]) -> Iterator[None]:
    select = pruner.select

    def spy(tokens: Any, k: int) -> Any:
        found = select(tokens, k)
        if isinstance(found, Lent):
            seen[tokens.layer] = tokens, found.gate
        return found

    pruner.__dict__["select"] = spy
    try:
        yield
    finally:
        del pruner.__dict__["select"]


def rounds(
    seen: Mapping[int, tuple[Any, Tensor]], loans: Sequence[int], hidden: Tensor, visual: Tensor
) -> dict[int, tuple[Tensor, Tensor]]:
    """What goes round which of the layers `loans`, and all gates, of what was recorded.

    `visual` `[B, L]` bool are the candidates, of which ``hidden[layer]`` went round it; others have a gate of 1. Where
    no method was asked, gates are those of the loan before.
    """
    found = {}
    for layer in sorted(loans):
        tokens, gate = seen[max(asked for asked in seen if asked <= layer)]
        gates = torch.ones(visual.shape, dtype=gate.dtype)
        for row, count, one in zip(tokens.sample.tolist(), tokens.counts, gate, strict=True):
            gates[row, visual[row]] = one[:count]
        found[layer] = hidden[layer] & visual, gates
    return found


@contextmanager
def going_round(parts: Parts, taken: Round) -> Iterator[None]:
    """Let tokens go round layers of the untouched model."""
    handles: list[Any] = []
    for i, (around, gate) in taken.items():
        layer = parts.layers[i]
        end = next(getattr(layer, name) for name in ENDS if hasattr(layer, name))
        handles += _hooks(layer, end, around, gate)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(layer: nn.Module, end: nn.Module, around: Tensor, gate: Tensor) -> list[Any]:
    entered: list[Tensor] = []

    def pre(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered[:] = [call_of(module, args, kwargs).get("hidden")]

    def post(_: nn.Module, __: tuple[Any, ...], out: Any) -> Any:
        states = out[0] if isinstance(out, tuple) else out
        states = torch.where(around[..., None], (entered[0] * gate[..., None]).to(states), states)
        return (states, *out[1:]) if isinstance(out, tuple) else states

    def scale(_: nn.Module, __: tuple[Any, ...], out: Any) -> Any:
        added = (out[0] if isinstance(out, tuple) else out) * gate[..., None]
        return (added, *out[1:]) if isinstance(out, tuple) else added

    return [
        layer.register_forward_pre_hook(pre, with_kwargs=True),
        layer.register_forward_hook(post),
        end.register_forward_hook(scale),
    ]
