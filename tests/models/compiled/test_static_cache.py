"""Static caches at the input stage: the tokens of the dynamic one, in fewer places; what can't be is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.cache_utils import StaticCache
from zoo import prompt, tiny

import vtc
from vtc.models.stock.call_arguments import cache_of
from vtc.models.stock.transformers_api import STATIC_COUNTS

pytestmark = [
    pytest.mark.usefixtures("no_grad"),
    pytest.mark.skipif(not STATIC_COUNTS, reason="this transformers counts a static cache's tokens outside of it"),
]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 7, "min_new_tokens": 7}
FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3")


def wrapped(family: str, spec: str = "uniform(keep=4)", impl: str = "sdpa", **options: Any) -> Any:
    """A wrapped tiny model whose windows no prompt here exceeds."""
    model = tiny(family, impl)
    if family == "gemma3":
        model.config.get_text_config().sliding_window = 400
    return vtc.compress(model, spec, **options)


def static_cache(model: Any, places: int) -> StaticCache:
    return StaticCache(config=model.config.get_text_config(), max_cache_len=places)


def filled(cache: StaticCache) -> int:
    """How many places of it hold a token."""
    return int((cache.layers[-1].keys[0, 0].abs().sum(-1) > 0).sum())


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", ["one", "pair", "ragged", "text_row", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_the_dynamic_cache(family: str, shape: str, impl: str) -> None:
    model, inputs = wrapped(family, impl=impl), prompt(family, shape).inputs
    wanted = model.generate(**inputs, **GREEDY)
    for given in (
        {"cache_implementation": "static"},
        {"past_key_values": static_cache(model, inputs["input_ids"].shape[1] + 8)},
    ):
        assert model.generate(**inputs, **GREEDY, **given).tolist() == wanted.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_places_are_filled_and_logits_are_the_same(family: str) -> None:
    model, inputs = wrapped(family), prompt(family, "one").inputs
    length = inputs["input_ids"].shape[1]
    dynamic = model(**inputs, use_cache=True)
    left = cache_of(dynamic).layers[-1].keys.shape[-2]
    # room for what is left, not for the whole prompt, but where the composite model makes masks of that
    cache = static_cache(model, (length if family == "gemma3" else left) + 3)
    out = model(**inputs, past_key_values=cache, use_cache=True)
    assert filled(cache) == left < length
    assert int(cache.get_seq_length()) == length
    assert (out.logits - dynamic.logits).abs().max() < 2e-5
    for step in range(3):
        token = torch.tensor([[5 + step]])
        wanted = model(token, past_key_values=cache_of(dynamic)).logits
        assert (model(token, past_key_values=cache).logits - wanted).abs().max() < 2e-5
    assert filled(cache) == left + 3


def test_a_second_turn_of_several_tokens() -> None:
    model, inputs = wrapped("llava"), prompt("llava", "ragged").inputs
    mask, turn = inputs["attention_mask"], torch.arange(10, 19).view(3, 3)
    seen = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1]])
    more = torch.cat([mask, seen], 1)
    at = (more.cumsum(1) - 1).clamp(min=0)[:, -3:]
    found = []
    for cache in (None, static_cache(model, mask.shape[1] + 4)):
        out = model(**inputs, past_key_values=cache, use_cache=True)
        out = model(turn, attention_mask=more, position_ids=at, past_key_values=cache_of(out), use_cache=True)
        again = torch.cat([more, more.new_ones(3, 1)], 1)
        step = model(
            turn[:, :1], attention_mask=again, position_ids=at[:, -1:] + 1, past_key_values=cache_of(out)
        ).logits
        found.append(torch.cat([out.logits[:, -1:], step], 1))
    assert (found[0] - found[1]).abs().max() < 2e-5


def test_a_picture_behind_text_and_a_reset_cache() -> None:
    model, inputs = wrapped("llava"), prompt("llava", "one").inputs
    text = torch.tensor([[1, 11, 12, 13]])
    length = text.shape[1] + inputs["input_ids"].shape[1]
    found = []
    for cache in (None, static_cache(model, length + 2)):
        for _ in range(2):
            out = model(text, past_key_values=cache, use_cache=True)
            whole = {**inputs, "attention_mask": torch.ones(1, length, dtype=torch.long)}
            found.append(model(**whole, past_key_values=cache_of(out), use_cache=True).logits)
            if cache is not None:
                cache.reset()
    for logits in found[1:]:
        assert (logits - found[0]).abs().max() < 2e-5


def test_beams() -> None:
    model, inputs = wrapped("llava"), prompt("llava", "ragged").inputs
    given = {**GREEDY, "num_beams": 3}
    wanted = model.generate(**inputs, **given)
    assert model.generate(**inputs, **given, cache_implementation="static").tolist() == wanted.tolist()


def test_keep_all_is_the_stock_model() -> None:
    stock, inputs = tiny("llava"), prompt("llava", "ragged").inputs
    wanted = stock.generate(**inputs, **GREEDY, cache_implementation="static").tolist()
    model = vtc.compress(stock, "uniform", keep=1.0)
    assert model.generate(**inputs, **GREEDY, cache_implementation="static").tolist() == wanted


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("fastv(keep=4)", {}, "before a decoder layer"),
        ("uniform(keep=4)", {"positions": "compact"}, "renumbers"),
    ],
)
def test_refused(spec: str, options: dict[str, Any], words: str) -> None:
    model, inputs = wrapped("llava", spec, **options), prompt("llava", "one").inputs
    with pytest.raises(NotImplementedError, match=words):
        model.generate(**inputs, **GREEDY, cache_implementation="static")
    with pytest.raises(NotImplementedError, match=words):
        model(**inputs, past_key_values=static_cache(model, 64))
    assert model.generate(**inputs, **GREEDY).shape[1] == inputs["input_ids"].shape[1] + 7


def test_windows_and_endings_that_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="sliding window of 12"):
        vtc.compress(tiny("gemma3"), "uniform", keep=4).generate(
            **prompt("gemma3", "one").inputs, **GREEDY, cache_implementation="static"
        )
    with pytest.raises(NotImplementedError, match="ends in a picture"):
        wrapped("llava", "random(keep=2)")(
            **prompt("llava", "ends").inputs, past_key_values=static_cache(tiny("llava"), 64)
        )


def test_a_short_cache_is_refused_unwrapped() -> None:
    model, inputs = wrapped("llava"), prompt("llava", "one").inputs
    cache = static_cache(model, 64)
    model(**inputs, past_key_values=cache, use_cache=True)
    vtc.restore(model)
    with pytest.raises(RuntimeError, match="pruned visual tokens"):
        model(torch.tensor([[5]]), past_key_values=cache)


def test_the_bundled_model() -> None:
    model = vtc.load("bundled", "uniform", keep=64)
    ids = torch.tensor([[1, *[model.config.image_token_id] * 576, 5, 6, 7]])
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    wanted = model.generate(**inputs, **GREEDY).tolist()
    assert model.generate(**inputs, **GREEDY, cache_implementation="static").tolist() == wanted
