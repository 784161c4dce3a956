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


def matrix(r: Draw, outer: int, inner: int) -> np.ndarray:
    """`[outer, inner]`, as torch's Linear holds it."""
    return normal(r, outer, inner, scale=1 / math.sqrt(inner))


def bias(r: Draw, n: int) -> np.ndarray:
    """Small normal numbers `[n]`."""
    return normal(r, n, scale=0.1)
