"""How vtc talks to transformers: what arguments are called, which cache layers and attention functions there are.

Read from the installed code, not from its version: an argument's name is looked up in the signature of the module that
takes it. Nothing else under ``models`` knows the name of a keyword, so that a renamed argument is one entry here.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

__all__ = ["Cache", "DynamicLayer", "DynamicSlidingWindowLayer", "is_flash_attention_requested"]

TESTED = ("5.5.0", "5.23.0", "5.24.0")

# what an argument is to vtc, and what transformers has called it, the newest name first
NAMES: dict[str, tuple[str, ...]] = {
    "ids": ("input_ids", "inputs"),
    "embeds": ("inputs_embeds",),
    "hidden": ("hidden_states",),
    "mask": ("attention_mask",),
    "positions": ("position_ids",),
    "rotary": ("position_embeddings",),
    "cache": ("cache", "past_key_values", "past_key_value"),
    "use cache": ("use_cache",),
    "logits to keep": ("logits_to_keep",),
    "image": ("pixel_values",),
    "video": ("pixel_values_videos",),
    "sizes": ("image_sizes",),
    "image grid": ("image_grid_thw",),
    "video grid": ("video_grid_thw",),
    "window index": ("window_index",),
    "features": ("mm_encoder_outputs",),
    "deepstack places": ("visual_pos_masks",),
    "deepstack": ("deepstack_visual_embeds",),
    "chunk ends": ("cu_seqlens",),
    "longest chunk": ("max_seqlen",),
    "prefill chunk": ("prefill_chunk_size",),
    "generation": ("generation_config",),
    "causal": ("is_causal",),
    "copies": ("expand_size",),
}

# how flash attention is told of several sequences in a row
PACKED_KWARGS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


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


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """The output with another last hidden state."""
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    output.last_hidden_state = hidden
    return output


def change_layers(
    output: Any, states: Callable[[int, Tensor], Tensor], attention: Callable[[int, Tensor], Tensor]
) -> Any:
    """The output with what it holds of each layer changed: hidden states `[B, L, D]` and attentions `[B, H, L, K]`."""

    def change(value: Any) -> Any:
        if not isinstance(value, tuple):
            return value
        change_one = {3: states, 4: attention}
        return tuple(change_one[x.dim()](i, x) if isinstance(x, Tensor) else x for i, x in enumerate(value))

    if isinstance(output, tuple):
        return tuple(map(change, output))
    for name in list(output):
        if isinstance(output[name], tuple):
            output[name] = change(output[name])
    return output


CONTINUOUS = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


def own_generate(model: Any) -> bool:
    """Whether the class of a model generates by a method of its own."""
    return getattr(type(model), "generate", GenerationMixin.generate) is not GenerationMixin.generate


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


# ---------------------------------------------------------------------- attention


def attention_kind(config: Any) -> str:
    """Name of the attention implementation that a configuration asks for."""
    return str(config._attn_implementation)


def attention_function(kind: str, eager: Any) -> Any:
    """The function behind an implementation's name; `eager` is the modeling file's own."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager)


def interface_mask(
    config: Any, kind: str, rule: Any, batch: int, n_query: int, n_key: int, dtype: torch.dtype, device: torch.device
) -> Any:
    """The mask of an attention implementation for a predicate `rule(b, h, q, k)`."""
    return ALL_MASK_ATTENTION_FUNCTIONS[kind](
        batch_size=batch,
        q_length=n_query,
        kv_length=n_key,
        q_offset=0,
        kv_offset=0,
        mask_function=rule,
        attention_mask=None,
        allow_is_causal_skip=False,
        dtype=dtype,
        config=config,
        use_vmap=False,
        device=device,
    )


class Rule(NamedTuple):
    """What stands where a mask would be under ``masks_as_rules``: `function(b, h, q, k)` says who sees whom."""

    function: Callable[..., Any]


def masks_as_rules(config: Any) -> Any:
    """A copy of a text model's config under which its masks come as ``Rule``."""
    name = "vtc_rules"
    if name not in ALL_MASK_ATTENTION_FUNCTIONS._global_mapping:
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, lambda *_, mask_function, **__: Rule(mask_function))
    changed = copy.copy(config)
    changed.__dict__["_attn_implementation_internal"] = name
    return changed


def mask_settings(config: Any) -> tuple[Any, ...]:
    """What of a text model's config its masks depend on, as far as it may be changed while the model is in use."""
    names = ("sliding_window", "attention_chunk_size", "is_causal", "layer_types")
    found = [getattr(config, name, None) for name in names]
    return tuple(tuple(value) if isinstance(value, list) else value for value in found)


class ConfigView:
    """A module's config under another attention implementation: all else is the config's own, also what changes later.

    Parameters
    ----------
    config : PreTrainedConfig or ConfigView
        What the module has.
    prefix : str
        Put in front of the implementation's name; the name stays inside, since transformers looks for 'flash' in it.
    function : callable
        The attention function that is registered under the new name.
    """

    def __init__(self, config: Any, prefix: str, function: Callable[..., Any]):
        self.__dict__.update(_vtc_config=config, _vtc_prefix=prefix, _vtc_function=function)

    @property
    def _attn_implementation(self) -> str:
        name = self._vtc_prefix + attention_kind(self._vtc_config)
        if name not in ALL_ATTENTION_FUNCTIONS._global_mapping:
            ALL_ATTENTION_FUNCTIONS.register(name, self._vtc_function)
        return name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_vtc_config", "_vtc_prefix", "_vtc_function"):
            raise AttributeError(name)
        return getattr(self._vtc_config, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._vtc_config, name, value)


# ---------------------------------------------------------------------- versions


def versions() -> str:
    """One sentence: what is installed, and what vtc was tested with."""
    tested = ", ".join(TESTED)
    return f"Installed: transformers {transformers.__version__}, torch {torch.__version__}; tested: {tested}."
