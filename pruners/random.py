"""Random pruning: the baseline that many published methods do not beat, at the input or deep in the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random as MersenneTwister
from typing import ClassVar

import torch
from torch import Tensor

from .base import STAGES, Pruner
from .registry import register_pruner
from .visual_tokens import VisualTokens

_MIX = 0x9E3779B97F4A7C15  # 2**64 / golden ratio


def _seed(*parts: int) -> int:
    """One 63-bit seed from several small numbers (splitmix64 finaliser, so that near inputs give far seeds)."""
    x = 0
    for part in parts:
        x = (x ^ (part & 0xFFFFFFFFFFFFFFFF)) + _MIX & 0xFFFFFFFFFFFFFFFF
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 31
    return x >> 1


@register_pruner("random")
@dataclass(kw_only=True)
class Random(Pruner):
    """Uniformly random tokens without replacement.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    seed : int
        Seed of the draw.
    layer : int, optional
        None prunes before the language model, `k` before decoder layer `k` (at the vision stage: encoder layer `k`).
    at : {"vision", "input", "decoder"}, optional
        The stage; by default ``decoder`` with a layer and ``input`` without.
    official : bool
        Draw as the "information horizon" code does: ``random.Random(seed).sample(range(n), k)`` of Python, for the
        first image of each sample (the code knows one; further ones get a seed of their own), the same in every layer.

    Notes
    -----
    The draw depends on the seed, the layer, the number of tokens and the span's place among the images of its sample,
    and on nothing else: a sample gets the same tokens alone and in any batch, on every device, and all its beams agree.
    O(n) on the CPU, no sync. In deep layers random is as good as published scores ("information horizon", CVPR 2026,
    arXiv 2512.07580): ``deep_random`` puts it behind another method under one budget. The authors draw once per sample
    from Python's global generator, unseeded, and average three runs; positions of kept tokens are renumbered there and
    stay here.
    """

    seed: int = 0
    layer: int | None = None
    at: str | None = None
    official: bool = False

    paper: ClassVar[str] = "baseline; deep layers: information horizon, arXiv 2512.07580"
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.at is not None and self.at not in STAGES:
            raise ValueError(f"random.at={self.at!r} is no stage; allowed are {', '.join(STAGES)}")
        if (self.at == "input" and self.layer is not None) or (self.at in ("vision", "decoder") and self.layer is None):
            raise ValueError(f"random.at={self.at!r} does not go with layer={self.layer}")

    @property
    def stage(self) -> str:  # type: ignore[override]
        """As asked for; by default from the layer."""
        return self.at or ("input" if self.layer is None else "decoder")

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """`k` random columns per row."""
        where = STAGES.index(tokens.stage), -1 if tokens.layer is None else tokens.layer
        rows = []
        for count, budget, order in zip(tokens.counts, tokens.budgets, tokens.order, strict=True):
            if self.official:
                python = MersenneTwister(self.seed if order == 0 else _seed(self.seed, order))
                drawn = torch.tensor(sorted(python.sample(range(count), budget)))
            else:
                generator = torch.Generator().manual_seed(_seed(self.seed, *where, count, order))
                drawn = torch.randperm(count, generator=generator)[:budget]
            rows.append(torch.nn.functional.pad(drawn, (0, k - budget)))
        return torch.stack(rows).to(tokens.ids.device)
