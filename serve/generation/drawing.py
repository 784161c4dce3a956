"""How an answer's tokens are drawn: a request's wishes as arguments of ``generate``, and seeds that stay its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vtc.serve.requests.chat_request import Sampling


def answer_length(sampling: Sampling, most: int) -> dict[str, Any]:
    """How long the answer may and must be, as arguments of ``generate``."""
    found: dict[str, Any] = {"max_new_tokens": most}
    if sampling.ignore_eos:
        found["eos_token_id"] = []  # None would be the model's own
    if sampling.min_tokens:
        found["min_new_tokens"] = sampling.min_tokens
    return found


def drawing(sampling: Sampling) -> dict[str, Any]:
    """How tokens are drawn, as arguments of ``generate``; empty where the model's own settings are to hold."""
    if sampling.temperature == 0:
        return {"do_sample": False}
    if sampling.temperature is None and sampling.top_p is None:
        return {}
    temperature = 1.0 if sampling.temperature is None else float(sampling.temperature)
    # no top_k: transformers' own default would cut the tail off without being asked
    return {"do_sample": True, "temperature": temperature, "top_p": float(sampling.top_p or 1.0), "top_k": 0}


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw as `seed` says, and leave the generators as they were: the next request draws its own."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
