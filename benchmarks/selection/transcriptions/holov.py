"""HoloV: budgets of sixteen runs by attention and by the variance of cosines, a run at a time."""

from __future__ import annotations

import itertools

import torch
from cases import Shape
from torch import Tensor

import vtc
from vtc.pruners.layout import Layout
from vtc.pruners.signals import EncoderAttention, Signal
from vtc.pruners.visual_tokens import SignalSource, VisualTokens

NAME = "holov"
RUNS = 16


class Given(SignalSource):
    """Serves one tensor as every signal."""

    def __init__(self, values: Tensor):
        self.values, self.declared = values, (EncoderAttention(),)

    def read(self, signal: Signal, tokens: VisualTokens) -> Tensor:
        """The tensor."""
        return self.values


def make(shape: Shape) -> tuple[Tensor, Tensor]:
    """Features `[B, N, D]` and attention `[B, N]`."""
    return shape.features(), (8 * shape.rand(shape.batch, shape.tokens)).softmax(-1)


def theirs(inputs: tuple[Tensor, Tensor], shape: Shape) -> Tensor:
    """`[B, k]`; a run that is too small for its budget leaves the first token in the open places."""
    chosen = []
    for x, attention in zip(*inputs, strict=True):
        edges = [i * len(x) // RUNS for i in range(RUNS + 1)]
        scores = []
        for start, stop in itertools.pairwise(edges):
            unit = x[start:stop] / (x[start:stop].norm(dim=1, keepdim=True) + 1e-6)
            cosine = unit @ unit.T * (1 - torch.eye(stop - start, dtype=x.dtype))
            mean = cosine.sum(1) / (stop - start - 1)
            variance = (cosine - mean[:, None]).square().sum(1) / (stop - start - 1)
            looked = 1000 * attention[start:stop]
            scores.append((looked + 0.09 * variance * (looked.mean() / (variance.mean() + 1e-6))).mean())
        weight = torch.stack(scores) / torch.stack(scores).sum()
        budget = (weight * shape.kept).floor().long()
        for run in weight.topk(int(shape.kept - budget.sum())).indices:
            budget[run] += 1
        kept = torch.zeros(shape.kept, dtype=torch.int64)
        found = [
            start + attention[start:stop].topk(min(int(b), stop - start)).indices
            for start, stop, b in zip(edges, edges[1:], budget, strict=False)
        ]
        together = torch.cat(found)
        kept[: len(together)] = together
        chosen.append(kept)
    return torch.stack(chosen)


def ours(inputs: tuple[Tensor, Tensor], shape: Shape) -> Tensor:
    """By vtc."""
    x, attention = inputs
    rows, n = x.shape[:2]
    tokens = VisualTokens(
        features=x,
        ids=torch.arange(n).expand(rows, -1),
        counts=[n] * rows,
        budgets=[shape.kept] * rows,
        layouts=[Layout.line(n)] * rows,
        sample=torch.arange(rows),
        order=[0] * rows,
        source=Given(attention[:, None]),
    )
    return vtc.parse("holov", keep=shape.kept)[0].select(tokens, shape.kept)
