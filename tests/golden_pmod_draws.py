"""Weights and inputs of p-MoD's vectors, drawn again: element-wise float32 operations on numpy's generator."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

F4 = np.float32


def sha(*arrays: np.ndarray) -> str:
    """The first 16 hex digits of the sha256 of `arrays`, one behind the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def normal(r: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normal numbers."""
    return r.standard_normal(shape, dtype=F4) * F4(scale)


def matrix(r: np.random.Generator, out: int, inner: int, gain: float = 1.0) -> np.ndarray:
    """`[out, in]`, as ``nn.Linear`` holds it."""
    return normal(r, out, inner, scale=gain / math.sqrt(inner))


def norm_weight(r: np.random.Generator, width: int) -> np.ndarray:
    """Near 1."""
    return F4(1) + normal(r, width, scale=0.1)


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
        w[f"{p}router.bias"] = normal(r, 1, scale=0.1)
    w["norm.weight"] = norm_weight(r, width)
    return w


def sequence(seed: int, rows: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings `[B, S, width]` of a right-padded batch, its visual columns and its valid ones `[B, S]` bool.

    `rows` are (text before, visual tokens, text behind) of each sample.
    """
    r = np.random.default_rng(seed)
    length = max(map(sum, rows))
    embeds = np.zeros((len(rows), length, width), F4)
    visual, valid = np.zeros((len(rows), length), bool), np.zeros((len(rows), length), bool)
    for b, (before, n, behind) in enumerate(rows):
        total = before + n + behind
        embeds[b, :total] = normal(r, total, width)
        visual[b, before : before + n] = True
        valid[b, :total] = True
    return embeds, visual, valid
