"""What each cell costs on one prompt: the cells take turns, so that other load hits all of them alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import nn

from vtc.eval.vlm.prompts import Row
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell

from .prefill_cost import Cost, Spread
from .timed_prompt import TimedPrompt

TRIED = 0.1  # of all turns: on so many it is tried ahead what the others will take
T = TypeVar("T")
TIMING, PEAKS = "timing", "peaks"  # steps of the work: a cell's turn, and its peak of memory


@dataclass(frozen=True)
class PrefillTime:
    """Median seconds to the first token.

    ``seconds`` is the whole forward, image encoding included; ``lm_seconds`` the language model alone, given the image
    features (None where they can't be given). The ``reference`` ones are the unpruned model's, in turns with it.
    """

    seconds: float
    reference: float
    lm_seconds: float | None
    lm_reference: float | None
    repeats: int

    @property
    def ratio(self) -> float:
        """Whole prefill, cell over unpruned."""
        return self.seconds / self.reference

    @property
    def lm_ratio(self) -> float | None:
        """Language-model prefill, cell over unpruned."""
        return None if self.lm_seconds is None or self.lm_reference is None else self.lm_seconds / self.lm_reference


def spread(readings: Sequence[float]) -> Spread:
    """Median and range."""
    return Spread(statistics.median(readings), min(readings), max(readings))


def turns(parts: Sequence[T], repeats: int, seed: int = 0) -> Iterator[tuple[int, T]]:
    """Each of `parts` once in every turn, in an order drawn anew; turn 0 is there to warm up."""
    order = random.Random(seed)
    for turn in range(repeats + 1):
        for part in order.sample(parts, len(parts)):
            yield turn, part


@torch.no_grad()
def measure_costs(
    model: nn.Module,
    cells: Sequence[Cell],
    row: Row,
    repeats: int = 5,
    advance: Callable[[str], None] = lambda step: None,
    small: Mapping[str, Row] = MappingProxyType({}),
) -> dict[str, Cost]:
    """Time all cells on one prompt, batch 1.

    Parameters
    ----------
    model : nn.Module
        Unwrapped.
    cells : sequence of Cell
        They take turns, one unmeasured turn first, every turn in another order.
    row : Row
        The prompt.
    repeats : int
        Measured turns.
    advance : callable
        Called with ``TIMING`` after each cell's turn, and with ``PEAKS`` after its memory was measured.
    small : mapping
        By spec the prompt with smaller pictures, of cells that show those.

    Returns
    -------
    dict
        By spec, without FLOPs.
    """
    prompts = _prompts(model, cells, row, small)
    readings: dict[str, dict[str, list[float]]] = {cell.spec: {} for cell in cells}
    for turn, cell in turns(cells, repeats):
        for part, seconds in prompts[cell.spec].read(cell).items():
            if turn:
                readings[cell.spec].setdefault(part, []).append(seconds)
        advance(TIMING)
    found = {}
    for cell in cells:
        spreads: dict[str, Any] = {part: spread(values) for part, values in readings[cell.spec].items()}
        peak, of = prompts[cell.spec].memory(cell)
        advance(PEAKS)
        found[cell.spec] = Cost(peak_memory=peak, memory_of=of, repeats=repeats, **spreads)
    return found


def _prompts(model: nn.Module, cells: Sequence[Cell], row: Row, small: Mapping[str, Row]) -> dict[str, TimedPrompt]:
    whole = TimedPrompt(model, row)
    return {cell.spec: TimedPrompt(model, small[cell.spec]) if cell.spec in small else whole for cell in cells}


@torch.no_grad()
def measure_shares(
    model: nn.Module,
    cells: Sequence[Cell],
    row: Row,
    repeats: int,
    seconds: float,
    advance: Callable[[], None] = lambda: None,
) -> tuple[float, dict[str, float]]:
    """Parts of the unpruned prefill's time, medians of turns: what bounds the speed-up.

    Parameters
    ----------
    model, cells, row
        See ``measure_costs``.
    repeats : int
        Measured turns at most, behind one that is not measured.
    seconds : float
        After which no more turns begin, but three there are.
    advance : callable
        Called after each turn.

    Returns
    -------
    float, dict
        Tower and projector over the whole; by spec, the time of choosing tokens over the whole.
    """
    prompt, order, start = TimedPrompt(model, row), random.Random(0), time.monotonic()
    whole: list[tuple[float, float]] = []
    choosing: dict[str, list[float]] = {cell.spec: [] for cell in cells}
    for turn in range(repeats + 1):
        if turn > 3 and time.monotonic() - start > seconds:
            break
        whole.append(prompt.whole())
        for cell in order.sample(cells, len(cells)):
            choosing[cell.spec].append(prompt.selection(cell))
        advance()
    prefill = statistics.median(p for _, p in whole[1:])
    tower = statistics.median(t for t, _ in whole[1:])
    return min(1.0, tower / prefill), {s: statistics.median(found[1:]) / prefill for s, found in choosing.items()}


def steps_of(cells: Sequence[Cell], repeats: int) -> dict[str, int]:
    """The steps of ``measure_costs``."""
    return {TIMING: len(cells) * (repeats + 1), PEAKS: len(cells)} if repeats else {}


@torch.no_grad()
def try_ahead(
    model: nn.Module, cells: Sequence[Cell], row: Row, small: Mapping[str, Row], repeats: int
) -> dict[str, float]:
    """Seconds that a step of ``measure_costs`` will take, from a small part of its turns, for the time left."""
    prompts, chosen = _prompts(model, cells, row, small), tried(cells, repeats + 1)
    prompts[chosen[0].spec].read(chosen[0])  # the first turn of all is no measure
    clock = prompts[chosen[0].spec].clock
    found = [clock.measure(lambda cell=cell: prompts[cell.spec].read(cell)) for cell in chosen]  # type: ignore[misc]
    return {TIMING: statistics.fmean(s for s, _ in found), PEAKS: statistics.fmean(r["prefill"] for _, r in found)}


def tried(cells: Sequence[T], turns: int) -> list[T]:
    """The cells whose turn is tried ahead, spread over all."""
    count = min(len(cells), max(6, round(TRIED * turns * len(cells))))
    return [cells[round(i * (len(cells) - 1) / max(1, count - 1))] for i in range(count)]


def prefill_times(costs: Mapping[str, Cost]) -> dict[str, PrefillTime]:
    """The prefill of each cell against the unpruned model's in the same turns."""
    base = costs.get(UNPRUNED.spec)
    if base is None or base.prefill is None:
        return {}
    reference = base.lm_prefill.median if base.lm_prefill else None
    return {
        spec: PrefillTime(
            c.prefill.median, base.prefill.median, c.lm_prefill.median if c.lm_prefill else None, reference, c.repeats
        )
        for spec, c in costs.items()
        if c.prefill
    }
