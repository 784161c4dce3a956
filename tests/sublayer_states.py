"""What a decoder's sublayers take and give, seen on the untouched model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from reference import text_model
from torch import Tensor, nn


@contextmanager
def sublayers(model: nn.Module) -> Iterator[dict[tuple[int, str], tuple[Tensor, Tensor]]]:
    """Collect what enters and leaves attention and MLP of every layer, `[B, L, D]`."""
    seen: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def hook(place: tuple[int, str]) -> Any:
        def note(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            seen[place] = before.double(), (output[0] if isinstance(output, tuple) else output).double()

        return note

    handles = [
        getattr(layer, name).register_forward_hook(hook((i, name)), with_kwargs=True)
        for i, layer in enumerate(text_model(model).layers)
        for name in ("self_attn", "mlp")
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
