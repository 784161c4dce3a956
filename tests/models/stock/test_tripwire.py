"""A transformers that calls its models in another way is noticed when wrapping or on the first forward, never later."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from reference import text_model
from torch import nn
from transformers import DynamicCache, LlamaModel
from versions import ENCODES_FIRST
from zoo import FAMILIES, prompt, tiny

import vtc
from vtc.models.language.text_hooks import TextSide
from vtc.models.stock import call_arguments as api

pytestmark = pytest.mark.usefixtures("no_grad")
WORDS = r"Installed: transformers .* tested: 5.5.0.*vtc.restore\(model\)"


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes vtc look for arguments under a name that this transformers does not have."""

    def rename(*meanings: str) -> None:
        for meaning in meanings:
            monkeypatch.setitem(api.NAMES, meaning, ("of_another_name",))
        api._signature.cache_clear()

    yield rename
    monkeypatch.undo()
    api._signature.cache_clear()


def caught(model: nn.Module, family: str, match: str, **more: Any) -> None:
    """The first forward ends in the tripwire's one error, and the restored model runs as ever."""
    inputs = prompt(family, "ragged").inputs
    with pytest.raises(RuntimeError, match=match) as error:
        model(**inputs, **more)
    assert "transformers" in str(error.value)
    vtc.restore(model)
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("meaning", ["embeds", "mask", "positions", "cache"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_an_argument_of_another_name_is_refused_when_wrapping(family: str, meaning: str, renamed: Any) -> None:
    renamed(meaning)
    model = tiny(family)
    with pytest.raises(NotImplementedError, match=r"names no of_another_name, which vtc has to give it"):
        vtc.compress(model, "random", keep=3)
    assert not hasattr(model, "vtc")


def test_a_new_name_beside_the_old_one_is_caught_on_the_first_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """What 5.24.0 did: the caller gives the cache under a new name, and the old name is still taken."""
    stock = LlamaModel.forward
    name = api.signature_of(tiny("llava").model.language_model).name("cache")

    @functools.wraps(stock)
    def forward(self: Any, *args: Any, renamed: Any = None, **kwargs: Any) -> Any:
        if renamed is not None:
            kwargs[name] = renamed
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    model = tiny("llava")
    lm = text_model(model)

    def rename(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**{k: v for k, v in kwargs.items() if k != name}, "renamed": kwargs.get(name)}

    handle = lm.register_forward_pre_hook(rename, with_kwargs=True)
    try:
        vtc.compress(model, "random", keep=3)
        kwargs = api.given(model, cache=DynamicCache(config=lm.config))
        with pytest.raises(RuntimeError, match=r"for the cache that vtc tracks|writes to DynamicCache"):
            model(**prompt("llava", "ragged").inputs, **kwargs)
    finally:
        handle.remove()
        vtc.restore(model)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("spec", ["random(keep=0.4)", "random(layer=2, keep=0.3)", "random(layer=5, keep=0.3)"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_hook_whose_return_is_dropped_is_caught(
    family: str, spec: str, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "layer" not in spec:
        stock = TextSide.before
        monkeypatch.setattr(TextSide, "before", lambda *args: stock(*args) and None)
    model = vtc.compress(tiny(family), spec)
    if "layer" in spec:
        drop_returns(model)
    caught(model, family, r"columns|mask that vtc made", use_cache=cached)


def drop_returns(model: Any) -> None:
    """Run the layers' own hooks of the wrapped `model`, and give the layers what they had before."""
    for layer in text_model(model).layers:
        for number, hook in list(layer._forward_pre_hooks.items()):
            if number in layer._forward_pre_hooks_with_kwargs:
                layer._forward_pre_hooks[number] = lambda *args, hook=hook: hook(*args) and None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_swapped_under_the_layers_is_caught(family: str) -> None:
    model = vtc.compress(tiny(family), "random", keep=3)
    lm = text_model(model)
    other = DynamicCache(config=lm.config)

    def swap(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call = api.call_of(layer, args, kwargs)
        call.put("cache", other)
        return call.args, call.kwargs

    handles = [layer.register_forward_pre_hook(swap, with_kwargs=True) for layer in lm.layers]
    inputs = prompt(family, "ragged").inputs
    with pytest.raises(RuntimeError, match="not to the cache of vtc"):
        model(**inputs, use_cache=True)
    for handle in handles:
        handle.remove()
    vtc.restore(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_swapped_in_the_output_is_caught(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = vtc.compress(tiny(family), "random", keep=3)
    lm = text_model(model)
    stock = type(lm).forward

    @functools.wraps(stock)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = stock(self, *args, **kwargs)
        out[next(n for n in api.NAMES["cache"] if n in out)] = DynamicCache(config=self.config)
        return out

    monkeypatch.setattr(type(lm), "forward", forward)
    with pytest.raises(RuntimeError, match="for the cache that vtc tracks"):
        model(**prompt(family, "ragged").inputs, use_cache=True)
    vtc.restore(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_that_does_not_arrive_is_caught(family: str) -> None:
    model = vtc.compress(tiny(family), "random", keep=3)

    def strip(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call = api.call_of(module, args, kwargs)
        call.put("mask", None)
        return call.args, call.kwargs

    layer = text_model(model).layers[0]
    handle = layer.register_forward_pre_hook(strip, with_kwargs=True)
    caught(model, family, "does not get the mask that vtc made")
    handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_is_skipped_is_caught(family: str) -> None:
    model = vtc.compress(tiny(family), "random", keep=3)
    lm = text_model(model)
    layers, lm.layers = lm.layers, lm.layers[:-1]
    lm.config.num_hidden_layers -= 1
    try:
        with pytest.raises(RuntimeError, match="5 of 6 decoder layers passed"):
            model(**prompt(family, "ragged").inputs)
    finally:
        lm.config.num_hidden_layers += 1
        lm.layers = layers
        vtc.restore(model)


@pytest.mark.skipif(not ENCODES_FIRST, reason="generate() encodes pictures inside the forward")
@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_that_never_reach_the_text_model_are_caught(family: str, renamed: Any) -> None:
    renamed("image", "video", "features")
    model = vtc.compress(tiny(family), "random", keep=3)
    with pytest.raises(RuntimeError, match="never reached the hook of its text model"):
        model.generate(**prompt(family, "ragged").inputs, max_new_tokens=2)
    vtc.restore(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_pixels_are_called_does_not_matter(family: str, renamed: Any) -> None:
    inputs = prompt(family, "ragged").inputs
    with vtc.compressed(tiny(family), "random", keep=3) as model:
        want = model(**inputs).logits
        renamed("image", "video", "features")
        assert torch.equal(model(**inputs).logits, want)
        assert model.vtc.report.tokens_kept < model.vtc.report.tokens_total


def test_a_pruned_cache_is_refused_by_a_model_that_is_no_longer_wrapped() -> None:
    model = vtc.compress(tiny("llava"), "random", keep=3)
    out = model(**prompt("llava", "one").inputs, use_cache=True)
    vtc.restore(model)
    with pytest.raises(RuntimeError, match="is now used by a model that is not wrapped by vtc"):
        model(input_ids=torch.tensor([[5]]), **api.given(model, cache=api.cache_of(out)))
