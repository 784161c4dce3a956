"""Compiles tiny models and counts the pieces that ``torch.compile`` cuts them into, and how many a forward runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class Pieces:
    """Graphs of a compiled model so far: how many were traced, and how many were run.

    A stock layer's graph serves layers like it, so that more may be run than there are, and a layer that differs has
    graphs of its own without one break more.
    """

    traced: int = 0
    run: int = 0


@contextmanager
def compiled(model: nn.Module) -> Iterator[tuple[Any, Pieces]]:
    """`model` under ``torch.compile``, and its pieces.

    A model has run once before, as models do: transformers sets hooks of its own in the first forward.
    """
    torch._dynamo.reset()
    pieces = Pieces()

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        pieces.traced += 1

        def run(*args: Any) -> Any:
            pieces.run += 1
            return graph(*args)

        return run

    try:
        yield torch.compile(model, backend=backend), pieces
    finally:
        torch._dynamo.reset()


def other_picture(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same prompt with another picture of the same size."""
    return {**inputs, "pixel_values": inputs["pixel_values"].flip(-1) * 0.5 + 0.1}
