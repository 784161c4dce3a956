"""How vtc talks to transformers: what arguments and outputs are called, and which cache layers there are.

Read from the installed code, not from its version: an argument's name is looked up in the signature of the module that
takes it. Nothing else under ``models`` (but ``attention_api``, of attention) knows the name of a keyword, so that a
renamed argument is one entry here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
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

# what an argument is to vtc, and what transformers has called it, the newest name first
NAMES: dict[str, tuple[str, ...]] = {
    "ids": ("input_ids", "inputs"),
    "embeds": ("inputs_embeds",),
    "hidden": ("hidden_states",),
    "mask": ("attention_mask",),
    "positions": ("position_ids",),
    "rotary": ("position_embeddings",),
    "cache": ("cache", "past_key_values", "past_key_value", "cache_params", "layer_past"),
    "use cache": ("use_cache",),
    "logits to keep": ("logits_to_keep",),
    "image": ("pixel_values",),
    "video": ("pixel_values_videos",),
    "sizes": ("image_sizes",),
    "shapes": ("spatial_shapes",),
    "image grid": ("image_grid_thw",),
    "video grid": ("video_grid_thw",),
    "video tokens": ("video_compression_mask",),
    "window index": ("window_index",),
    "features": ("mm_encoder_outputs",),
    "deepstack places": ("visual_pos_masks", "vision_mask"),
    "deepstack": ("deepstack_visual_embeds",),
    "per-layer inputs": ("per_layer_inputs", "per_layer_input"),
    "token types": ("moe_mm_token_type_ids",),
    "shared keys": ("shared_kv_states",),
    "injected": ("deepstack_features",),
    "chunk ends": ("cu_seqlens",),
    "longest chunk": ("max_seqlen",),
    "prefill chunk": ("prefill_chunk_size",),
    "generation": ("generation_config",),
    "causal": ("is_causal",),
    "copies": ("expand_size",),
}
# arguments that hold no tensor: switches of what comes back
SWITCHES = ("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "cache_position")


class Signature:
    """The arguments of a function by what they mean.

    Attributes
    ----------
    places : dict
        The place of each name that may be given by position, without ``self``.
    named : frozenset of str
        All names.
    """

    def __init__(self, function: Callable[..., Any]):
        parameters = list(inspect.signature(function).parameters.values())
        if parameters and parameters[0].name == "self":
            parameters = parameters[1:]
        by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.places: dict[str | None, int] = {p.name: i for i, p in enumerate(parameters) if p.kind in by_place}
        self.named = frozenset(p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
        self._names: dict[str, str | None] = {}

    def name(self, meaning: str) -> str | None:
        """What this function calls the argument; None if it names none such."""
        if meaning not in self._names:
            self._names[meaning] = next((n for n in NAMES[meaning] if n in self.named), None)
        return self._names[meaning]

    def by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What a call gives, by name; ``torch.compile`` traces this, and not ``inspect``'s binding."""
        found = {name: args[place] for name, place in self.places.items() if name is not None and place < len(args)}
        return {**found, **kwargs}


@functools.lru_cache(maxsize=1024)
def _signature(function: Callable[..., Any]) -> Signature:
    return Signature(function)


def signature_of(module: nn.Module) -> Signature:
    """Signature of a module's forward as its class has it: accelerate replaces the instance's."""
    return _signature(type(module).forward)


class Call:
    """The arguments of one call of a module, read and replaced by what they mean.

    Parameters
    ----------
    signature : Signature
        Of what is called.
    args, kwargs : tuple and mapping
        As given; what was given by position stays there.
    """

    __slots__ = ("args", "kwargs", "signature")

    def __init__(self, signature: Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]):
        self.signature, self.args, self.kwargs = signature, args, dict(kwargs)

    def get(self, meaning: str, default: Any = None) -> Any:
        """The argument's value; `default` where it was not given."""
        name = self.signature.name(meaning)
        if name is not None and name in self.kwargs:  # of two names given, transformers reads the newer one
            return self.kwargs[name]
        for known in NAMES[meaning]:
            if known in self.kwargs:
                return self.kwargs[known]
        place = self._place(name)
        return default if place is None else self.args[place]

    def put(self, meaning: str, value: Any) -> None:
        """Replace the argument, under the one name that its receiver reads."""
        known = NAMES[meaning]
        name = self.signature.name(meaning) or known[0]
        if len(known) > 1:
            for other in known:
                self.kwargs.pop(other, None)
        place = None if name in self.kwargs else self._place(name)
        if place is None:
            self.kwargs[name] = value
        else:
            self.args = (*self.args[:place], value, *self.args[place + 1 :])

    def pop(self, meaning: str) -> Any:
        """The argument's value, which is then no longer given (None if it came by position)."""
        value = self.get(meaning)
        for known in NAMES[meaning]:
            self.kwargs.pop(known, None)
        if self._place(self.signature.name(meaning)) is not None:
            self.put(meaning, None)
        return value

    def _place(self, name: str | None) -> int | None:
        place = self.signature.places.get(name, len(self.args))
        return place if place < len(self.args) else None


def call_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """The arguments that a hook of `module` got."""
    return Call(signature_of(module), args, kwargs)


def named_arguments(module: nn.Module) -> frozenset[str]:
    """Names of the arguments of a module's forward."""
    return signature_of(module).named


def unknown_arguments(module: nn.Module) -> list[str]:
    """Names of the arguments of a module's forward that mean nothing to vtc."""
    known = {name for names in NAMES.values() for name in names}
    return sorted(named_arguments(module) - known - set(SWITCHES))


def need(module: nn.Module, *meanings: str) -> None:
    """Raise NotImplementedError if a module's forward does not name one of the arguments that vtc gives it."""
    signature = signature_of(module)
    for meaning in meanings:
        if signature.name(meaning) is None:
            raise NotImplementedError(
                f"{type(module).__name__}.forward names no {' or '.join(NAMES[meaning])}, which vtc has to give it; it "
                f"takes {', '.join(sorted(signature.named))}. {versions()}"
            )


def given(module: nn.Module, **arguments: Any) -> dict[str, Any]:
    """Keyword arguments for a call of `module`, e.g. ``given(model, cache=cache)``, under its own names for them."""
    signature = signature_of(module)
    return {signature.name(meaning) or NAMES[meaning][0]: value for meaning, value in arguments.items()}


def configured(config: Any, meaning: str) -> Any:
    """What a configuration says of an argument that the call leaves out; None if nothing."""
    return next((getattr(config, name) for name in NAMES[meaning] if hasattr(config, name)), None)


def asks_attentions(module: nn.Module, call: Call) -> bool:
    """Whether a call of a text model, or its configuration, wants the layers' attention weights back."""
    asked = call.kwargs.get("output_attentions")
    return bool(getattr(module.config, "output_attentions", False) if asked is None else asked)


def among(arguments: Mapping[str, Any], meaning: str) -> Any:
    """An argument of a call that was bound by name; None if it was not given."""
    return next((arguments[name] for name in NAMES[meaning] if name in arguments), None)


def undecorated(module: nn.Module) -> Callable[..., Any]:
    """The forward that a module's class was written with, its ``self`` not bound."""
    return inspect.unwrap(type(module).forward)


def takes(module: nn.Module, meaning: str) -> bool:
    """Whether a module's forward names such an argument."""
    return signature_of(module).name(meaning) is not None


def cache_of(output: Any) -> Any:
    """The KV cache in a model's output; None if there is none."""
    for name in NAMES["cache"]:  # the newest first: older names still answer there, with a warning
        if name in getattr(type(output), "__dataclass_fields__", ()):
            return getattr(output, name)
    return next((part for part in output if isinstance(part, Cache)), None) if isinstance(output, tuple) else None


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
