"""How vtc talks to transformers' attention: what an implementation is called, its masks, and another in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

__all__ = ["is_flash_attention_requested"]

# how flash attention is told of several sequences in a row
PACKED_KWARGS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


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


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Bool mask as the additive one of eager attention."""
    return torch.zeros((), dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


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
