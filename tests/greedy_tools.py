"""Greedy choices as plain Python loops in float64, and made-up spans for the methods on them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from properties import Spans
from torch import nn

import vtc
from vtc.pruners.signals import DecoderAttention, EncoderAttention, PreProjector, TextEmbeddings


def cosines(x):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


def best_of(score, taken):
    return max((i for i in range(len(score)) if i not in taken), key=lambda i: (score[i], -i))


def slow_farthest(x, k, weight=None, start=None):
    c = cosines(x)
    if start is None and weight is None:
        start = [-max([c[i][j] for j in range(len(x)) if j != i], default=-2) for i in range(len(x))]
    order = [best_of(weight if start is None else start, ())]
    while len(order) < k:
        score = [(1 if weight is None else weight[i]) * min(1 - c[i][j] for j in order) for i in range(len(x))]
        order.append(best_of(score, order))
    return order


def slow_max_sum(x, k, start):
    c, order = cosines(x), [best_of(start, ())]
    while len(order) < k:
        order.append(best_of([-sum(c[i][j] for j in order) for i in range(len(x))], order))
    return order


def slow_mmr(x, importance, k, lam, parallel):
    c, order = cosines(x), []
    while len(order) < k:
        near = [max(c[i][j] for j in order) if order else 0 for i in range(len(x))]
        score = [lam * w - (1 - lam) * m if order else w for w, m in zip(importance, near, strict=True)]
        for _ in range(min(parallel, k - len(order))):
            order.append(best_of(score, order))
    return order


def slow_dpp(x, k, weight):
    kernel, order = weight[:, None] * cosines(x) * weight, []
    while len(order) < k:
        gain = np.array([np.linalg.det(kernel[np.ix_([*order, i], [*order, i])]) for i in range(len(x))])
        order.append(best_of((gain / gain.max()).round(9), order))  # equal ones are equal up to rounding
    return order


def slow_cover(covers, k, weight):
    """Of `covers` `[R, N]`: how much of it is covered by the chosen columns, and what each other one would add."""
    order = []
    while len(order) < k:
        total = lambda some: np.concatenate([covers[:, some], np.zeros((len(covers), 1))], 1).max(1).sum()  # noqa: E731
        gain = [weight[i] * (total([*order, i]) - total(order)) for i in range(covers.shape[1])]
        order.append(best_of(np.round(gain, 9), order))
    return order


def spans_of(reads, lengths, dims=6, keep=0.4, seed=0, dtype=torch.float32, texts=()):
    torch.manual_seed(seed)
    features = [torch.randn(n, dims, dtype=dtype) for n in lengths]
    budgets = [vtc.pruners.base.resolve_keep(keep, n) for n in lengths]

    def read(signal, n):
        if isinstance(signal, EncoderAttention):
            return torch.rand(3, n, dtype=dtype)
        if isinstance(signal, DecoderAttention):
            return torch.rand(3, 4, n, dtype=dtype)
        return torch.randn(n, 1, 5, dtype=dtype)

    found = {s: [read(s, n) for n in lengths] for s in reads if not isinstance(s, TextEmbeddings)}
    words = {s: [torch.randn(4, dims, dtype=dtype) for _ in lengths] for s in (*texts, TextEmbeddings())}
    projector = mlp(5, 7, dims, dtype)
    return Spans(features, budgets, found, words, projector=projector, questions=["what ?"] * len(lengths))


def mlp(width, hidden, out, dtype):
    return nn.Sequential(nn.Linear(width, hidden, dtype=dtype), nn.GELU(), nn.Linear(hidden, out, dtype=dtype))


@dataclasses.dataclass(kw_only=True)
class Reader(vtc.Pruner):
    """Looks at what the projector reads instead of choosing."""

    read: object = PreProjector()
    seen: list = dataclasses.field(default_factory=list)
    ragged = True

    @property
    def signals(self):
        return (self.read,)

    def select(self, tokens, k):
        found = tokens.read(self.read)
        self.seen.append((found[tokens.valid] if self.read == PreProjector() else found, tokens.projector))
        return torch.arange(k).expand(len(tokens.counts), -1)
