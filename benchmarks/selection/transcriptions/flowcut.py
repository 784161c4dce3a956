"""FlowCut's bookkeeping through a tower: importance layer by layer, how much each cut takes, and what is left.

What a layer gives (attention, similarity and mean of values) lies there for both. `width` plays no part: a head has 64.
"""

from __future__ import annotations

from functools import cache

import torch
from cases import Shape
from torch import Tensor

import vtc
from vtc.pruners.base import Pruner, Stop
from vtc.pruners.layout import Layout
from vtc.pruners.signals import EncoderValues, Signal
from vtc.pruners.visual_tokens import SignalSource, VisualTokens

NAME = "flowcut"
LAST, HEADS, CHANNELS = 22, 16, 64  # CLIP-L in LLaVA-1.5


class Given(SignalSource):
    """The first so many tokens of every layer: as many numbers as are left, without a copy."""

    def __init__(self, layers: list[tuple[Tensor, Tensor, Tensor]]):
        self.layers = layers

    def read(self, signal: Signal, tokens: VisualTokens) -> Tensor:
        """A view."""
        attention, similarity, values = self.layers[signal.layer]
        n = tokens.ids.shape[1]
        if isinstance(signal, EncoderValues):
            return values[:, :n, None]
        return (similarity if signal.of == "values" else attention)[..., :n]


def make(shape: Shape) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per layer attention and similarity of values `[B, H, N]` and values `[B, N, d]`."""
    layers = []
    for layer in range(LAST):
        rows = (2 * torch.randn(2, shape.batch, HEADS, shape.tokens, generator=shape.generator(layer))).softmax(-1)
        values = torch.randn(shape.batch, shape.tokens, CHANNELS, generator=shape.generator(100 + layer))
        layers.append((rows[0].to(shape.dtype), rows[1].to(shape.dtype), values.to(shape.dtype)))
    return layers


def theirs(inputs: list[tuple[Tensor, Tensor, Tensor]], shape: Shape) -> Tensor:
    """`[B, k]`, picture by picture."""
    return torch.stack([_one([[x[row] for x in layer] for layer in inputs], shape) for row in range(shape.batch)])


def _one(layers: list[list[Tensor]], shape: Shape) -> Tensor:
    left, total = torch.arange(shape.tokens), None
    for layer, (attention, similarity, values) in enumerate(layers):
        n = len(left)
        if n <= shape.kept:
            break
        a, s = (x[:, :n].float().mean(0) for x in (attention, similarity))
        share = a / a.sum()
        now = (share + s / s.sum()) * values[:n].float().abs().sum(-1)
        total = now if total is None else 0.5 * total + 0.5 * now
        cuts_to_go = LAST - 1 - layer
        if cuts_to_go % 2:
            continue
        keep = shape.kept
        if cuts_to_go:
            entropy = -(share * share.log()).sum() / torch.tensor(float(n)).log()
            gone = torch.round((n - shape.kept) / cuts_to_go**0.5 * (1 - entropy**2))
            keep = max(n - int(gone), shape.kept)
        best = total.topk(keep).indices.sort().values
        left, total = left[best], total[best]
    return left


def ours(inputs: list[tuple[Tensor, Tensor, Tensor]], shape: Shape) -> Tensor:
    """By vtc, picture by picture: what is left differs."""
    return torch.stack(
        [_vtc([tuple(x[i : i + 1] for x in layer) for layer in inputs], shape) for i in range(shape.batch)]
    )


@cache
def parsed(keep: int) -> Pruner:
    """The method, made once for a model."""
    return vtc.parse("flowcut", keep=keep)[0]


def _vtc(layers: list[tuple[Tensor, Tensor, Tensor]], shape: Shape) -> Tensor:
    pruner = parsed(shape.kept)
    left, state, source = torch.arange(shape.tokens), {}, Given(layers)
    for stop in pruner.tower_stops(Stop("vision", None, shape.kept), LAST):
        if len(left) <= shape.kept:
            break
        tokens = VisualTokens(
            features=torch.empty(1, len(left), 1),
            ids=left[None],
            counts=[len(left)],
            budgets=[shape.kept],
            layouts=[Layout.line(shape.tokens)],
            sample=torch.zeros(1, dtype=torch.int64),
            order=[0],
            span=[0],
            stage="vision",
            layer=stop.layer,
            last=LAST,
            state=state,
            source=source,
        )
        found = pruner.select(tokens, shape.kept)[0]
        left = left[found[found >= 0]]
    return left
