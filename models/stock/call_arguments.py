"""What arguments of a model's forward are called, and one call's arguments by what they mean.

Read from the installed code, not from its version: an argument's name is looked up in the signature of the module that
takes it. Nothing else under ``models`` (but ``attention_api``, of attention) knows the name of a keyword, so that a
renamed argument is one entry here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from .transformers_api import Cache, versions

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
NOWHERE = 1 << 16  # the place of an argument that can't be given by position
# arguments that hold no tensor: switches of what comes back
ATTENTIONS = "output_attentions"
SWITCHES = (ATTENTIONS, "output_hidden_states", "output_router_logits", "return_dict", "cache_position")


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
        self._found: dict[str, tuple[str | None, tuple[str, ...], int]] = {}

    def find(self, meaning: str) -> tuple[str | None, tuple[str, ...], int]:
        """What this function calls an argument, or None; all its names, that one first; its place, or ``NOWHERE``."""
        found = self._found.get(meaning)
        if found is None:
            name = next((n for n in NAMES[meaning] if n in self.named), None)
            # of two names given, transformers reads the newer one
            names = NAMES[meaning] if name is None else (name, *(n for n in NAMES[meaning] if n != name))
            found = self._found[meaning] = name, names, self.places.get(name, NOWHERE)
        return found

    def name(self, meaning: str) -> str | None:
        """What this function calls the argument; None if it names none such."""
        return self.find(meaning)[0]

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
        _, names, place = self.signature.find(meaning)
        for name in names:
            if name in self.kwargs:
                return self.kwargs[name]
        return self.args[place] if place < len(self.args) else default

    def put(self, meaning: str, value: Any) -> None:
        """Replace the argument, under the one name that its receiver reads."""
        _, (name, *others), place = self.signature.find(meaning)
        for other in others:
            self.kwargs.pop(other, None)
        if name in self.kwargs or place >= len(self.args):
            self.kwargs[name] = value
        else:
            self.args = (*self.args[:place], value, *self.args[place + 1 :])

    def pop(self, meaning: str) -> Any:
        """The argument's value, which is then no longer given (None if it came by position)."""
        value = self.get(meaning)
        _, names, place = self.signature.find(meaning)
        for name in names:
            self.kwargs.pop(name, None)
        if place < len(self.args):
            self.put(meaning, None)
        return value


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


def asks_attentions(call: Call) -> bool:
    """Whether a call of a text model wants the layers' attention weights back."""
    return bool(call.kwargs.get(ATTENTIONS))


def gives_attentions(config: Any) -> bool:
    """Whether a configuration says so for calls that say nothing."""
    return bool(getattr(config, "output_attentions", False))


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
