"""Compiles tiny models and counts the pieces that ``torch.compile`` cuts them into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def compiled(model: nn.Module) -> Iterator[tuple[Any, list[int]]]:
    """`model` under ``torch.compile``, and the sizes of its graphs, one entry more for each that is traced.

    A model has run once before, as models do: transformers sets hooks of its own in the first forward.
    """
    torch._dynamo.reset()
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    try:
        yield torch.compile(model, backend=backend), graphs
    finally:
        torch._dynamo.reset()


def other_picture(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same prompt with another picture of the same size."""
    return {**inputs, "pixel_values": inputs["pixel_values"].flip(-1) * 0.5 + 0.1}
