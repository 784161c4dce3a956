"""Inputs and weights of the vectors in golden/c, drawn in the order that ``golden/c/README.md`` gives. Numpy only."""

from __future__ import annotations

import hashlib
import math

import numpy as np

Draw = np.random.Generator


def sha(*arrays: np.ndarray) -> str:
    """What ``meta["sha"]`` says of the arrays drawn."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def normal(r: Draw, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normal numbers, float32."""
    return r.standard_normal(shape, dtype=np.float32) * np.float32(scale)


def matrix(r: Draw, outer: int, inner: int, gain: float = 1.0) -> np.ndarray:
    """`[outer, inner]`, as torch's Linear holds it."""
    return normal(r, outer, inner, scale=gain / math.sqrt(inner))


def norm_weight(r: Draw, width: int) -> np.ndarray:
    """Near 1, `[width]`."""
    return np.float32(1) + normal(r, width, scale=0.1)


def bias(r: Draw, n: int) -> np.ndarray:
    """Small normal numbers `[n]`."""
    return normal(r, n, scale=0.1)


def mlp2(r: Draw, inner: int, outer: int) -> list[np.ndarray]:
    """Linear, GELU, linear: weight and bias of each."""
    return [matrix(r, outer, inner), bias(r, outer), matrix(r, outer, outer), bias(r, outer)]


def quecc_weights(seed: int, width: int, text: int, levels: int, kernel: int) -> dict[str, np.ndarray]:
    """Weights of a QueCC module by the names of ``QueryCompressor``, in the order drawn."""
    r, weights = np.random.default_rng(seed), {}

    def linear(name: str, outer: int, inner: int, joint: str = ".") -> None:
        weights[f"{name}{joint}weight"], weights[f"{name}{joint}bias"] = matrix(r, outer, inner), bias(r, outer)

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = norm_weight(r, width)
        weights[f"{name}.bias"] = bias(r, width)

    for name, inner in (("query", width), ("key", levels), ("value", levels)):
        linear(f"{name}.first", width, inner)
        linear(f"{name}.second", width, width)
        norm(f"{name}.norm")
    weights["down.weight"] = normal(r, width, 1, kernel, kernel, scale=1 / kernel)
    weights["down.bias"] = bias(r, width)
    linear("text", width, text)
    norm("text_norm")
    linear("attention.in_proj", 3 * width, width, "_")
    linear("attention.out_proj", width, width)
    return weights
