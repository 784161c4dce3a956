"""What is not supported is refused, at once, with a message that says what to do instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from methods import BOTH_STAGES, NO_VISION_STAGE
from reference import greedy
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer, StaticCache
from zoo import prompt, tiny
from zoo.models import TEXT

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")


def usable(model: nn.Module) -> None:
    """After a refusal the model still answers, and still restores."""
    inputs = prompt("llava", "one").inputs
    assert greedy(model, inputs, 3).tokens.shape == (1, 3)
    vtc.restore(model)
    assert not hasattr(model, "vtc")


@pytest.mark.parametrize("implementation", ["static"])
def test_static_caches(implementation: str) -> None:
    model = vtc.compress(tiny("llava"), BOTH_STAGES.pruner)
    inputs = prompt("llava", "one").inputs
    with pytest.raises(NotImplementedError, match="DynamicCache"):
        model.generate(**inputs, max_new_tokens=3, cache_implementation=implementation)
    usable(model)


def test_a_static_cache_given_to_forward() -> None:
    model = vtc.compress(tiny("llava"), BOTH_STAGES.pruner)
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    with pytest.raises(NotImplementedError, match="DynamicCache"):
        model(**prompt("llava", "one").inputs, past_key_values=cache)
    usable(model)


class QuantizedLayer(DynamicLayer):
    """Stands for the quantized layers, whose back-ends are not installed: a layer with its own storage."""


def test_quantized_and_other_caches() -> None:
    model = vtc.compress(tiny("llava"), BOTH_STAGES.pruner)
    with pytest.raises(NotImplementedError, match="QuantizedLayer"):
        model(**prompt("llava", "one").inputs, past_key_values=Cache(layer_class_to_replicate=QuantizedLayer))
    usable(model)


def test_chunked_prefill() -> None:
    model = vtc.compress(tiny("llava"), BOTH_STAGES.pruner)
    with pytest.raises(NotImplementedError, match="prefill_chunk_size"):
        model.generate(**prompt("llava", "one").inputs, max_new_tokens=3, prefill_chunk_size=8)
    usable(model)


def test_wrapping_a_part_of_a_wrapped_model() -> None:
    model = vtc.compress(tiny("llava"), BOTH_STAGES.pruner)
    with pytest.raises(RuntimeError, match="restore"):
        vtc.compress(model.model, "random", keep=0.5)
    usable(model)


def test_a_text_only_model() -> None:
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT))
    with pytest.raises(NotImplementedError, match="llama"):
        vtc.compress(model, "random", keep=0.5)


def test_remote_code() -> None:
    class Foreign(type(tiny("llava"))):  # type: ignore[misc]
        pass

    Foreign.__module__ = "transformers_modules.someone.model"
    model = tiny("llava")
    model.__class__ = Foreign
    with pytest.raises(NotImplementedError, match="remote code"):
        vtc.compress(model, "random", keep=0.5)


@pytest.mark.parametrize("family", NO_VISION_STAGE)
def test_families_that_cannot_be_pruned_in_the_tower_say_why(family: str) -> None:
    model = tiny(family)
    with pytest.raises(NotImplementedError, match=r"tower|resamples"):
        vtc.compress(model, "random(at=vision, layer=1, keep=0.5)")
    assert not hasattr(model, "vtc")


@pytest.mark.parametrize("thing", [None, "a string", 3, torch.zeros(1)])
def test_no_model_at_all(thing: Any) -> None:
    with pytest.raises(TypeError, match="model"):
        vtc.compress(thing, "random", keep=0.5)


def test_restoring_a_model_that_is_not_wrapped_is_fine() -> None:
    model = tiny("llava")
    assert vtc.restore(model) is model
