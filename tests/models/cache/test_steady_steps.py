"""Decoding steps that need nothing of vtc: the tokens of the long way, and no more operators than the stock model."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import prompt, tiny

import vtc
from vtc.models.cache.steady_steps import steady_of
from vtc.models.language import model_hooks

pytestmark = pytest.mark.usefixtures("no_grad")
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "input": ("uniform", {}),
    "compact": ("uniform", {"positions": "compact"}),
    "decoder": ("fastv(layer=2)", {}),
}


class Operators(TorchDispatchMode):
    """Counts what torch runs."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def answers(model: Any, **more: Any) -> list[list[int]]:
    """Greedy tokens."""
    given = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, **more}
    return model.generate(**prompt("llava", "one").inputs, **given).tolist()


def steps(model: Any, count: int) -> tuple[Any, list[int]]:
    """The cache behind a prompt and `count` steps, and how many operators each step took."""
    inputs = prompt("llava", "one").inputs
    out = model(**inputs, use_cache=True)
    length, found = inputs["input_ids"].shape[1], []
    for step in range(count):
        one = torch.ones(1, length + step + 1, dtype=torch.long)
        at = torch.tensor([[length + step]])
        with Operators() as operators:
            out = model(torch.tensor([[5]]), attention_mask=one, position_ids=at, past_key_values=out.past_key_values)
        found.append(operators.count)
    return out.past_key_values, found


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("more", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_as_the_long_way(setting: str, more: dict[str, Any]) -> None:
    method, options = SETTINGS[setting]
    model = vtc.compress(tiny("llava"), method, keep=4, **options)
    found = answers(model, **more)
    with mock.patch.object(model_hooks, "note_steady"):
        assert answers(model, **more) == found


@pytest.mark.parametrize("setting", SETTINGS)
def test_few_operators_and_slots_on_demand(setting: str) -> None:
    method, options = SETTINGS[setting]
    _, stock = steps(tiny("llava"), 4)
    model = vtc.compress(tiny("llava"), method, keep=4, **options)
    cache, found = steps(model, 4)
    assert steady_of(cache) is not None
    assert found[-1] <= stock[-1] + 5
    length = prompt("llava", "one").inputs["input_ids"].shape[1] + 4
    for layer in cache.layers:
        if getattr(layer, "has_slots", False):
            assert layer.slots.shape[1] == layer.physical()
            assert layer.slots[0, -4:].tolist() == list(range(length - 4, length))


def test_a_cache_of_steady_steps_is_refused_unwrapped() -> None:
    model = vtc.compress(tiny("llava"), "uniform", keep=4)
    cache, _ = steps(model, 3)
    vtc.restore(model)
    with pytest.raises(RuntimeError, match="pruned visual tokens"):
        model(torch.tensor([[5]]), past_key_values=cache)
