"""Made-up spans for methods that merge."""

from __future__ import annotations

from typing import Any

import torch
from properties import Spans
from torch import Tensor

import vtc
from vtc.pruners.base import Pruner
from vtc.pruners.layout import Layout
from vtc.pruners.signals import EncoderAttention, EncoderKeys, PreProjector

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


HEADS, UNIT, WIDTH = 2, 2, 3  # heads, patches of a token, channels of a patch; the projector puts patches side by side


def method(spec: str, keep: int | float | None = None) -> Pruner:
    return vtc.parse(spec, keep=keep)[0]


def reads_of(pruner: Pruner, sizes: list[int], dtype: torch.dtype, g: torch.Generator) -> dict[Any, list[Tensor]]:
    """What `pruner` reads of spans of these sizes, drawn at random."""
    reads: dict[Any, list[Tensor]] = {}
    for signal in pruner.signals:
        if isinstance(signal, EncoderAttention):
            heads = 1 if signal.joint_heads else HEADS
            reads[signal] = [torch.randn(heads, n, generator=g).softmax(-1).to(dtype) for n in sizes]
        elif isinstance(signal, EncoderKeys):
            width = 4 if signal.heads else HEADS * 4
            reads[signal] = [torch.randn(n, UNIT, width, generator=g).to(dtype) for n in sizes]
        else:
            assert isinstance(signal, PreProjector)
            reads[signal] = [torch.randn(n, UNIT, WIDTH, generator=g).to(dtype) for n in sizes]
    return reads


def made_up(
    pruner: Pruner,
    sizes: list[int],
    budgets: list[int],
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    copies: bool = False,
    layouts: list[Layout] | None = None,
) -> Spans:
    """Random spans with all that `pruner` reads; with `copies` many tokens are the same."""
    g = torch.Generator().manual_seed(seed)
    features = [torch.randn(n, UNIT * WIDTH, generator=g).to(dtype) for n in sizes]
    reads = reads_of(pruner, sizes, dtype, g)
    if copies:
        for i, n in enumerate(sizes):
            twin = torch.randint(0, 1 + n // 3, (n,), generator=g)
            features[i] = features[i][twin]
            for signal, values in reads.items():
                values[i] = values[i][..., twin] if isinstance(signal, EncoderAttention) else values[i][twin]
    return Spans(features, budgets, reads, layouts=layouts)
