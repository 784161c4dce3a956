"""Static cache layers that hold fewer tokens than the sequence has, the same of each layer.

What a pruned prompt leaves fills the first columns, as a shorter prompt would. Within a forward that vtc sees, such a
layer is a stock one of that shorter sequence; to everybody else it answers with the length of the whole one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.models.stock.transformers_api import StaticCache, StaticLayer, StaticSlidingWindowLayer
from vtc.models.stock.tripwire import check_update


class Phase:
    """Of one cache: whether its layers are now used by a forward that vtc sees."""

    open = False


class ShortLayer:
    """Mixin.

    Attributes
    ----------
    dropped : int
        Tokens of the sequence that have no column.
    real : Tensor or None
        `[B, M]` bool, of the cache's first layer: False where a column is padding; None: there is none.
    phase : Phase
        Of the cache.
    """

    dropped: int = 0
    real: Tensor | None = None
    phase: Phase
    is_initialized: bool

    @property
    def is_compileable(self) -> bool:
        """Outside of a forward masks would be made over the columns held, of a mask over the sequence."""
        return self.phase.open or not self.dropped

    def hidden(self) -> int:
        """Tokens that are counted, and not held."""
        return 0 if self.phase.open else self.dropped

    def update(self, key_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store new columns.

        Raises
        ------
        RuntimeError
            If the model is no longer wrapped.
        """
        if self.dropped and not self.phase.open:
            check_update(None, key_states)
        return super().update(key_states, *args, **kwargs)  # type: ignore[misc]

    def get_seq_length(self) -> Any:
        """Tokens of the sequence; within a forward, the columns that are held."""
        length = super().get_seq_length()  # type: ignore[misc]
        return length + self.hidden() if self.is_initialized else length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key length and the offset that makes the columns held end where the sequence does."""
        length, offset = super().get_mask_sizes(query_length)  # type: ignore[misc]
        return length, offset + self.hidden()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the batch, padding included."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        if self.real is not None:
            self.real = self.real.index_select(0, beam_idx.to(self.real.device))

    def reset(self) -> None:
        """Forget everything."""
        super().reset()  # type: ignore[misc]
        self.dropped, self.real = 0, None


class ShortStaticLayer(ShortLayer, StaticLayer):  # type: ignore[override]
    """``StaticLayer`` of a pruned sequence."""


class ShortSlidingLayer(ShortLayer, StaticSlidingWindowLayer):  # type: ignore[override]
    """``StaticSlidingWindowLayer`` of one that its window is longer than."""


SHORT: dict[type, Any] = {StaticLayer: ShortStaticLayer, StaticSlidingWindowLayer: ShortSlidingLayer}


def is_static(cache: Any) -> bool:
    """Whether a cache is a static one of layers that can be shortened."""
    return type(cache) is StaticCache and all(type(x) in SHORT or isinstance(x, ShortLayer) for x in cache.layers)


def is_short(cache: Any) -> bool:
    """Whether tokens are missing in a static cache."""
    return type(cache) is StaticCache and isinstance(cache.layers[0], ShortLayer) and cache.layers[0].dropped > 0


def shorten(cache: Any, dropped: int, real: Tensor | None) -> Phase:
    """Note that `dropped` tokens more have no column, and which columns are padding; opens the phase."""
    if not isinstance(cache.layers[0], ShortLayer):
        phase = Phase()
        for i, layer in enumerate(cache.layers):
            twin = SHORT[type(layer)]
            new = twin.__new__(twin)
            new.__dict__.update(layer.__dict__)
            new.phase = phase
            cache.layers[i] = new
    for layer in cache.layers:
        layer.dropped += dropped
    cache.layers[0].real = real
    cache.layers[0].phase.open = True
    return cache.layers[0].phase


def widened(real: Tensor | None, start: int, valid: Tensor, columns: int) -> Tensor:
    """`[B, columns]` bool: ``ShortLayer.real`` with the columns from `start` on as `valid` `[B, n]` says."""
    rows, n = valid.shape
    found = torch.ones(rows, columns, dtype=torch.bool, device=valid.device) if real is None else real.clone()
    found[:, start : start + n] = valid
    return found
