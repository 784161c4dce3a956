"""Weights and inputs of p-MoD's vectors, drawn again: element-wise float32 operations on numpy's generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from golden_trained_draws import bias, matrix, norm_weight, normal


def llama_layers(seed: int, layers: int, width: int, inner: int, router: float) -> dict[str, np.ndarray]:
    """Weights of Llama layers by their names in ``LlamaModel``, of a router each, and of the last norm."""
    r = np.random.default_rng(seed)
    w: dict[str, np.ndarray] = {}
    for i in range(layers):
        p = f"layers.{i}."
        for name in "qkvo":
            w[f"{p}self_attn.{name}_proj.weight"] = matrix(r, width, width, 0.5 if name == "o" else 1.0)
        w[f"{p}mlp.gate_proj.weight"] = matrix(r, inner, width)
        w[f"{p}mlp.up_proj.weight"] = matrix(r, inner, width)
        w[f"{p}mlp.down_proj.weight"] = matrix(r, width, inner, 0.5)
        w[f"{p}input_layernorm.weight"] = norm_weight(r, width)
        w[f"{p}post_attention_layernorm.weight"] = norm_weight(r, width)
        w[f"{p}router.weight"] = matrix(r, 1, width, router)
        w[f"{p}router.bias"] = bias(r, 1)
    w["norm.weight"] = norm_weight(r, width)
    return w


def sequence(seed: int, rows: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings `[B, S, width]` of a right-padded batch, its visual columns and its valid ones `[B, S]` bool.

    `rows` are (text before, visual tokens, text behind) of each sample.
    """
    r = np.random.default_rng(seed)
    length = max(map(sum, rows))
    embeds = np.zeros((len(rows), length, width), np.float32)
    visual, valid = np.zeros((len(rows), length), bool), np.zeros((len(rows), length), bool)
    for b, (before, n, behind) in enumerate(rows):
        total = before + n + behind
        embeds[b, :total] = normal(r, total, width)
        visual[b, before : before + n] = True
        valid[b, :total] = True
    return embeds, visual, valid
