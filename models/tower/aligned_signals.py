"""Encoder signals of one vision call, put in the order of its items when somebody reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from vtc.pruners.signals import Signal

from .call_state import VisionRun


class AlignedSignals(Mapping[Signal, "list[Tensor]"]):
    """Signal -> a tensor for each item (``VisionRecord.signals``).

    The tower may run in a graph of ``torch.compile``, which ends where values are taken out of it. So they are taken
    where the language model begins, when the graph has ended anyway.

    Parameters
    ----------
    run : VisionRun
        The call, which is over.
    layers : dict
        The tower's layer that each signal is read at.
    """

    def __init__(self, run: VisionRun, layers: dict[Signal, int]):
        self._run: VisionRun | None = run
        self._layers = layers
        self._found: dict[Signal, list[Tensor]] = {}

    def __getitem__(self, signal: Signal) -> list[Tensor]:
        if self._run is not None:
            run, self._run = self._run, None  # what was captured is freed, and is not copied with the record
            self._found = {s: run.aligned(s, layer) for s, layer in self._layers.items()}
        return self._found[signal]

    def __iter__(self) -> Iterator[Signal]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)
