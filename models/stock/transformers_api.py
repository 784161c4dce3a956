"""What vtc takes from transformers beside arguments: cache layers, parts of outputs, how a model generates."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
import transformers.cache_utils
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    StaticCache,
    StaticLayer,
    StaticSlidingWindowLayer,
)
from transformers.modeling_layers import GradientCheckpointingLayer

__all__ = [
    "Cache",
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "StaticCache",
    "StaticLayer",
    "StaticSlidingWindowLayer",
]

TESTED = ("5.5.0", "5.23.0", "5.24.0")
# cache layers without columns: a state that every token goes into, and nothing (not in every version)
STATE = LinearAttentionLayer
# whether a static layer counts its tokens itself, and is not told where new ones go
STATIC_COUNTS = hasattr(StaticLayer(max_cache_len=1), "cumulative_length")
NOTHING: type | None = getattr(transformers.cache_utils, "DummyLayer", None)
FEATURES = ("get_image_features", "get_video_features")


def hidden_of(output: Any) -> Tensor:
    """The last hidden state `[B, L, D]` in a text model's output, also where the caller wants tuples."""
    return output[0]


def features_in(output: Any) -> Any:
    """What of a vision call's output is fed.

    Its ``pooler_output``, else what is fed at the first of several layers (Granite 4 vision), else its last hidden
    state (Llama 4, Fuyu).
    """
    found = getattr(output, "pooler_output", None)
    if found is None and getattr(output, "deepstack_features", None):
        _, found = output.deepstack_features[0]
    if found is None:
        found = getattr(output, "last_hidden_state", None)
    return output if found is None else found


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """The output with another last hidden state."""
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    output.last_hidden_state = hidden
    return output


def change_layers(
    output: Any, states: Callable[[int, Tensor], Tensor], attention: Callable[[int, Tensor], Tensor]
) -> Any:
    """The output with what it holds of each layer changed: hidden states `[B, L, D]` and attentions `[B, H, L, K]`.

    Where they have names, hidden states may also be several for each token, `[n, B, L, D]`.
    """

    def change(value: Any, name: str = "") -> Any:
        if not isinstance(value, tuple):
            return value
        change_one = {3: states, 4: states if name == "hidden_states" else attention}
        return tuple(change_one[x.dim()](i, x) if isinstance(x, Tensor) else x for i, x in enumerate(value))

    if isinstance(output, tuple):
        return tuple(map(change, output))
    for name in list(output):
        if isinstance(output[name], tuple):
            output[name] = change(output[name], name)
    return output


CONTINUOUS = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


def own_generate(model: Any) -> bool:
    """Whether the class of a model generates by a method of its own that never hands over to transformers'."""
    own = getattr(type(model), "generate", GenerationMixin.generate)
    return own is not GenerationMixin.generate and "__class__" not in inspect.unwrap(own).__code__.co_freevars


@functools.cache
def _checkpoints_without_gradients() -> bool:
    """Whether a layer in training is checkpointed under ``torch.no_grad`` too, and so loses its cache there."""

    class Layer(GradientCheckpointingLayer):
        def forward(self, x: Tensor) -> Tensor:
            return x

    used: list[bool] = []

    def checkpoint(call: Callable[..., Any], *args: Any) -> Any:
        used.append(True)
        return call(*args)

    layer: Any = Layer().train()
    layer.gradient_checkpointing = True
    layer._gradient_checkpointing_func = checkpoint
    with torch.no_grad():
        layer(torch.zeros(1))
    return bool(used)


def checkpointed(module: nn.Module) -> bool:
    """Whether the layers of a text model run under gradient checkpoints now, where they take no cache."""
    if not (module.training and getattr(module, "gradient_checkpointing", False)):
        return False
    return torch.is_grad_enabled() or _checkpoints_without_gradients()


def new_cache(config: Any) -> Cache:
    """An empty cache as the text model of `config` would make it."""
    return DynamicCache(config=config)


def plain_cache(cache: Any) -> bool:
    """Whether a cache does nothing beside its layers."""
    return type(cache) in (Cache, DynamicCache)


def keeps_state(config: Any) -> bool:
    """Whether any layer of the text model of `config` is recurrent, and keeps a state of all tokens."""
    return any(type(layer) is STATE for layer in new_cache(config).layers)


def holds_columns(layer: Any) -> bool:
    """Whether a cache layer holds keys and values of each token, and not one state of all, or nothing."""
    return type(layer) not in (STATE, NOTHING)


def has_state(layer: Any) -> bool:
    """Whether tokens went into the state of a recurrent cache layer."""
    seen = layer.has_previous_state
    return any(seen.values()) if isinstance(seen, dict) else bool(seen)


def keeps_prompt(layer: type) -> bool:
    """Whether a cache layer keeps all of its first forward, and a window of what follows (Unlimited-OCR)."""
    kind = getattr(layer, "_layer_type", None)
    return issubclass(layer, DynamicSlidingWindowLayer) and kind == "reference_sliding_attention"


def versions() -> str:
    """One sentence: what is installed, and what vtc was tested with."""
    tested = ", ".join(TESTED)
    return f"Installed: transformers {transformers.__version__}, torch {torch.__version__}; tested: {tested}."
