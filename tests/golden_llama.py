"""The one-layer Llama whose attention some golden vectors are of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import LlamaConfig


def llama_of(meta: Mapping[str, Any]) -> LlamaConfig:
    """As a vector's `meta` says."""
    width, heads = meta["d"], meta["heads"]
    return LlamaConfig(
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        num_hidden_layers=1,
        vocab_size=8,
        intermediate_size=width,
        rms_norm_eps=meta["eps"],
        head_dim=width // heads,
        rope_parameters={"rope_type": "default", "rope_theta": meta["rope_base"]},
    )
