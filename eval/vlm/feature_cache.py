"""Vision features by image, for all cells that can use the same, held in memory up to a limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vtc.pruners.base import Pruner
from vtc.pruners.signals import Signal

from .encode_once import RECORD, encode
from .prompts import Row
from .pruning_settings import CACHE_BYTES, DEPTH, Cell
from .smaller_pictures import any_size


def pruned(model: nn.Module, cell: Cell) -> Any:
    """Context in which `model` runs under `cell`."""
    from vtc.api import compressed

    if cell.small:
        return any_size(model)
    return nullcontext(model) if cell.stock else compressed(model, cell.spec)


@dataclass(kw_only=True)
class _Recorder(Pruner):
    """Keeps everything and declares what others read: the features of one run of the tower then serve them all."""

    wanted: tuple[Signal, ...] = ()

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        return self.wanted


def encoder_signals(cells: Sequence[Cell]) -> tuple[Signal, ...]:
    """What the cells behind the tower read of it."""
    from vtc.pipeline_text import parse

    found: dict[Signal, None] = {}
    for cell in cells:
        if not (cell.stock or cell.vision_stage):
            for pruner in parse(cell.spec):
                stops = pruner.stops(DEPTH)
                found |= dict.fromkeys(s for stop in stops for s in pruner.signals_at(stop) if s.part == "encoder")
    return tuple(found)


def size_of(output: Any) -> int:
    """Bytes of an encoder output's tensors, those of its record included; storage that they share counts once."""
    seen: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for part in value.values():
                walk(part)
        elif isinstance(value, list | tuple):
            for part in value:
                walk(part)

    record = getattr(output, RECORD, None)
    walk([dict(output), record and record.signals, record and [step.kept for step in record.steps]])
    return sum(seen.values())


class Features:
    """Encoder outputs of the images used last.

    Parameters
    ----------
    model : nn.Module
        Unwrapped.
    cells : sequence of Cell
        All cells of the sweep: the signals that any of them reads are stored with the features. Cells that prune inside
        the tower have outputs of their own.
    limit : int
        Bytes to hold beyond the batches at hand; what is used least recently goes first, and is computed again when it
        is needed again.
    """

    def __init__(self, model: nn.Module, cells: Sequence[Cell], limit: int = CACHE_BYTES):
        self.model, self.limit = model, limit
        self.signals = encoder_signals(cells)
        self.wrapped = any(not (c.stock or c.vision_stage) for c in cells)
        self.bytes = self.runs = 0
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    @staticmethod
    def key(cell: Cell, row: Row) -> Hashable:
        """Rows of the same one have the same output."""
        return cell.encoder, row.modality, row.question.media, row.question.kind, row.visual

    def get(self, cell: Cell, row: Row) -> Any:
        """The vision output for `row` under `cell`; `model` must not be wrapped at the moment."""
        return self.get_all(cell, [row])[0]

    def get_all(self, cell: Cell, rows: Sequence[Row]) -> list[Any]:
        """As ``get``, for several rows; those that are not held are computed under one wrapper."""
        by_key = {self.key(cell, row): row for row in rows}
        found = {key: self._held[key][0] for key in by_key if key in self._held}
        for key in found:
            self._held.move_to_end(key)
        if len(found) < len(by_key):
            with self._recorded(cell) as model:
                for key, row in by_key.items():
                    if key not in found:
                        found[key] = encode(model, row)
                        self._hold(key, found[key])
        return [found[self.key(cell, row)] for row in rows]

    def _hold(self, key: Hashable, output: Any) -> None:
        self.runs += 1
        size = size_of(output)
        self._held[key] = output, size
        self.bytes += size
        while self.bytes > self.limit and self._held:
            _, (_, freed) = self._held.popitem(last=False)
            self.bytes -= freed

    def _recorded(self, cell: Cell) -> Any:
        """Context in which the model's outputs have what `cell` needs of them."""
        from vtc.api import compressed

        if cell.vision_stage:
            return pruned(self.model, cell)
        if not self.wrapped:
            return nullcontext(self.model)
        # made under a wrapped model, so that it carries the record of its grid
        return compressed(self.model, _Recorder(keep=1.0, wanted=self.signals))
