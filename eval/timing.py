"""Prefill time of a cell against the unpruned model: interleaved repeats, medians, batch 1, selection included."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .cells import Cell
from .encode import encode, join_outputs, reuses_encoder, to_device
from .prompt import Row
from .runner import pruned


@dataclass(frozen=True)
class PrefillTime:
    """Median seconds to the first token.

    ``seconds`` is the whole forward, image encoding included; ``lm_seconds`` the language model alone, given the image
    features (None where they can't be given). The ``reference`` ones are the unpruned model's, in turns with it.
    """

    seconds: float
    reference: float
    lm_seconds: float | None
    lm_reference: float | None
    repeats: int

    @property
    def ratio(self) -> float:
        """Whole prefill, cell over unpruned."""
        return self.seconds / self.reference

    @property
    def lm_ratio(self) -> float | None:
        """Language-model prefill, cell over unpruned."""
        return None if self.lm_seconds is None or self.lm_reference is None else self.lm_seconds / self.lm_reference


def _clock(model: nn.Module, call: Callable[[], Any]) -> float:
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def in_turns(sides: Sequence[Callable[[], float]], repeats: int) -> list[float]:
    """Median of each side's own clock readings; the sides take turns, after one unmeasured turn."""
    readings: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats + 1):
        for side, kept in zip(sides, readings, strict=True):
            seconds = side()
            if turn:
                kept.append(seconds)
    return [statistics.median(kept) for kept in readings]


@torch.no_grad()
def prefill_time(model: nn.Module, cell: Cell, row: Row, reference: Cell, repeats: int = 5) -> PrefillTime:
    """Time the prefill of one prompt.

    Parameters
    ----------
    model : nn.Module
        Unwrapped.
    cell, reference : Cell
        What is measured, and against what.
    row : Row
        The prompt.
    repeats : int
        Measured turns.
    """
    text = {"input_ids": row.ids[None], **{k: v[None] for k, v in row.tokens.items()}}
    text = {name: to_device(value, model) for name, value in text.items()}
    vision = {name: to_device(value, model) for name, value in row.vision.items()}

    def run(which: Cell, inputs: Callable[[nn.Module], dict[str, Any]]) -> float:
        with pruned(model, which) as wrapped:
            given = inputs(wrapped)
            return _clock(model, lambda: wrapped(**text, **given, use_cache=True, logits_to_keep=1))

    whole = in_turns([lambda c=c: run(c, lambda _: vision) for c in (reference, cell)], repeats)  # type: ignore[misc]
    lm: list[float] | list[None] = [None, None]
    if reuses_encoder(model):
        made = {}
        for c in (reference, cell):
            with pruned(model, c) as wrapped:
                made[c.spec] = encode(wrapped, row)

        def features(c: Cell) -> dict[str, Any]:
            return {
                "mm_encoder_outputs": {"image": join_outputs([made[c.spec]])}
            }  # a forward may change what it is given

        lm = in_turns([lambda c=c: run(c, lambda _: features(c)) for c in (reference, cell)], repeats)  # type: ignore[misc]
    return PrefillTime(whole[1], whole[0], lm[1], lm[0], repeats)
