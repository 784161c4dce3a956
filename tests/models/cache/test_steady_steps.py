"""Decoding steps that need nothing of vtc: the tokens of the long way, and no more operators than the stock model."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import sys
import weakref
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import prompt, tiny
from zoo.models import TEXT, llava

import vtc
from vtc.models.cache.steady_steps import steady_of
from vtc.models.language import text_hooks
from vtc.models.selection import select
from vtc.models.stock.call_arguments import cache_of

pytestmark = pytest.mark.usefixtures("no_grad")
OURS = Path(text_hooks.__file__).parents[2]
PACKAGES = tuple(str(folder) + os.sep for folder in OURS.iterdir() if (folder / "__init__.py").exists())
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "input": ("uniform", {}),
    "compact": ("uniform", {"positions": "compact"}),
    "decoder": ("fastv(layer=2)", {}),
}


class Operators(TorchDispatchMode):
    """Counts what torch runs, and what of it waits for the device."""

    count = 0
    waits = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        self.waits += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return function(*args, **(kwargs or {}))


def answers(model: Any, family: str = "llava", shape: str = "one", **more: Any) -> list[list[int]]:
    """Greedy tokens."""
    given = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, **more}
    return model.generate(**prompt(family, shape).inputs, **given).tolist()


def prefill(model: Any, family: str, shape: str) -> tuple[Any, Any, Tensor]:
    """A prompt's output, its cache, and its mask."""
    inputs = prompt(family, shape).inputs
    out = model(**inputs, use_cache=True)
    return out, cache_of(out), inputs["attention_mask"]


def step(model: Any, cache: Any, mask: Tensor) -> Tensor:
    """Feed one token a row; the mask with it."""
    mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    at = mask.cumsum(1)[:, -1:] - 1
    model(torch.full((len(mask), 1), 5), attention_mask=mask, position_ids=at, past_key_values=cache)
    return mask


def steps(model: Any, count: int, family: str = "llava", shape: str = "one") -> tuple[Any, list[Operators]]:
    """The cache behind a prompt and `count` steps, and the operators of each step."""
    _, cache, mask = prefill(model, family, shape)
    found = []
    for _ in range(count):
        with Operators() as operators:
            mask = step(model, cache, mask)
        found.append(operators)
    return cache, found


def calls_of_ours(model: Any) -> int:
    """How many functions of vtc a decoded token calls, once steps are steady."""
    _, cache, mask = prefill(model, "llava", "one")
    for _ in range(2):
        mask = step(model, cache, mask)
    found = 0

    def count(frame: Any, event: str, _: Any) -> None:
        nonlocal found
        code = frame.f_code
        # torch calls the watch of ``vtc.saving`` for each part of a list of modules that a text model slices
        found += event == "call" and code.co_filename.startswith(PACKAGES) and code.co_name != "_joined"

    sys.setprofile(count)
    try:
        step(model, cache, mask)
    finally:
        sys.setprofile(None)
    return found


def deep(depth: int) -> Any:
    """A LLaVA of so many decoder layers."""
    with mock.patch.dict(TEXT, {"num_hidden_layers": depth}):
        return llava()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("more", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("shape", ["one", "ragged", "right"])
def test_as_the_long_way(setting: str, more: dict[str, Any], shape: str) -> None:
    method, options = SETTINGS[setting]
    model = vtc.compress(tiny("llava"), method, keep=4, **options)
    found = answers(model, shape=shape, **more)
    with mock.patch.object(text_hooks, "note_steady"):
        assert answers(model, shape=shape, **more) == found


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", ["one", "ragged", "text_row"])
@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl"])
def test_as_the_long_way_elsewhere(family: str, shape: str, impl: str) -> None:
    """Positions of three axes, features that enter at layers, and windows: gemma3's is wide here, then exceeded."""
    model = vtc.compress(tiny(family, impl), "uniform", keep=0.4)
    for window in (12, 60) if family == "gemma3" else (None,):
        model.config.get_text_config().sliding_window = window
        found = answers(model, family, shape)
        with mock.patch.object(text_hooks, "note_steady"):
            assert answers(model, family, shape) == found


@pytest.mark.parametrize("setting", SETTINGS)
def test_few_operators_and_slots_on_demand(setting: str) -> None:
    method, options = SETTINGS[setting]
    _, stock = steps(tiny("llava"), 4)
    model = vtc.compress(tiny("llava"), method, keep=4, **options)
    cache, found = steps(model, 4)
    assert steady_of(cache) is not None
    assert found[-1].count <= stock[-1].count + 5
    assert found[-1].waits <= stock[-1].waits
    length = prompt("llava", "one").inputs["input_ids"].shape[1] + 4
    for layer in cache.layers:
        if getattr(layer, "has_slots", False):
            assert layer.slots.shape[1] == layer.physical()
            assert layer.slots[0, -4:].tolist() == list(range(length - 4, length))


@pytest.mark.parametrize(("family", "shape"), [("llava", "ragged"), ("gemma3", "one"), ("gemma3", "ragged")])
def test_few_operators_with_padding_and_windows(family: str, shape: str) -> None:
    model, pruned = tiny(family), tiny(family)
    for one in (model, pruned):
        if family == "gemma3":
            one.config.get_text_config().sliding_window = 100
    _, stock = steps(model, 4, family, shape)
    cache, found = steps(vtc.compress(pruned, "uniform", keep=4), 4, family, shape)
    assert steady_of(cache) is not None
    # gemma3's composite model makes masks of its own, of columns that it has to look up where tokens are gone
    assert found[-1].count <= stock[-1].count + (6 if family == "gemma3" else 5)
    assert found[-1].waits <= stock[-1].waits


@pytest.mark.parametrize("spec", ["uniform(keep=1.0)", "fastv(keep=1.0)", "uniform(keep=4)", "fastv(keep=4)"])
def test_a_token_calls_as_little_of_vtc_whatever_the_depth(spec: str) -> None:
    shallow, double = (calls_of_ours(vtc.compress(deep(depth), spec)) for depth in (4, 8))
    assert 0 < shallow == double < 30


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
@pytest.mark.parametrize("shape", ["one", "ragged"])
def test_a_method_that_keeps_everything_leaves_the_stock_forward_alone(family: str, shape: str) -> None:
    stock, right = prefill(tiny(family), family, shape)[0], answers(tiny(family), family, shape)
    model = vtc.compress(tiny(family), "uniform", keep=1.0)
    out, cache, _ = prefill(model, family, shape)
    assert torch.equal(out.logits, stock.logits)
    assert {type(layer) for layer in cache.layers} == {type(layer) for layer in cache_of(stock).layers}
    report = model.vtc.report
    assert report.tokens_kept == report.tokens_total > 0
    assert not any(layer._forward_pre_hooks for layer in model.model.language_model.layers)
    assert answers(model, family, shape) == right


@pytest.mark.parametrize("spec", ["uniform", "fastv"])
def test_a_prompt_waits_for_no_more_than_stock(spec: str) -> None:
    waits = []
    for model in (
        tiny("llava"),
        vtc.compress(tiny("llava"), spec, keep=1.0),
        vtc.compress(tiny("llava"), spec, keep=4),
    ):
        # what methods give back is looked at on the CPU only
        with Operators() as operators, mock.patch.object(select, "looked_at", return_value=False):
            prefill(model, "llava", "one")
        waits.append(operators.waits)
    assert max(waits) == waits[0]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copied_cache_goes_on_by_itself(again: Any) -> None:
    model = vtc.compress(tiny("llava"), "uniform", keep=4)
    _, cache, mask = prefill(model, "llava", "one")
    for _ in range(3):
        mask = step(model, cache, mask)
    copied, held = again(cache), cache.layers[-1].keys.shape[-2]
    assert steady_of(cache) is not None
    assert steady_of(copied) is None
    mask = step(model, copied, mask)
    assert copied.layers[-1].keys.shape[-2] == held + 1
    assert cache.layers[-1].keys.shape[-2] == held


def test_a_cache_goes_as_soon_as_nobody_holds_it() -> None:
    model = vtc.compress(tiny("llava"), "uniform", keep=4)
    _, cache, mask = prefill(model, "llava", "one")
    for _ in range(3):
        mask = step(model, cache, mask)
    assert steady_of(cache) is not None
    gone = weakref.ref(cache)
    gc.disable()
    try:
        del cache, _
        assert gone() is None
    finally:
        gc.enable()


def test_hooks_of_layers_come_and_go_in_their_order() -> None:
    model, seen = tiny("llava"), []
    layer = model.model.language_model.layers[3]
    layer.register_forward_pre_hook(lambda _, args: seen.append(("before", args[0].shape[1])))
    vtc.compress(model, "uniform(layer=3)", keep=4)
    layer.register_forward_pre_hook(lambda _, args: seen.append(("behind", args[0].shape[1])))
    found = []
    for _ in range(2):
        _, cache, mask = prefill(model, "llava", "one")
        found.append(seen[:])
        for _ in range(3):
            mask = step(model, cache, mask)
        seen.clear()
    assert found[0] == found[1]
    assert [name for name, _ in found[0]] == ["before", "behind"]
    assert found[0][0][1] - found[0][1][1] == 12
    vtc.restore(model)
    assert len(layer._forward_pre_hooks) == 2


def test_a_cache_of_steady_steps_is_refused_unwrapped() -> None:
    model = vtc.compress(tiny("llava"), "uniform", keep=4)
    cache, _ = steps(model, 3)
    vtc.restore(model)
    with pytest.raises(RuntimeError, match="pruned visual tokens"):
        model(torch.tensor([[5]]), past_key_values=cache)
