"""The rounds: every method beside the unpruned model and the stock model on fewer tokens, in an order drawn anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vtc.eval.cost.clocks import Clock
from vtc.eval.cost.interleaved_timing import turns
from vtc.eval.cost.timed_prompt import DECODED, TimedPrompt
from vtc.eval.vlm.feature_cache import pruned
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell
from vtc.models.layout.run_projector import projector_of

from .cell_facts import Facts
from .layer_match import spread_over
from .layer_times import ModuleTimes
from .subject import Subject


@dataclass
class Rounds:
    """Seconds of a cell by part, one number a round, of all layers; and its peak of memory.

    ``attainable`` are those of the stock model's prefill on the tokens that the cell leaves; empty where the text model
    does not run by itself.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    attainable: list[float] = field(default_factory=list)
    peak: int = 0
    peak_of: str = ""


@dataclass(frozen=True)
class _Stock:
    """A turn of the stock text model alone: seconds of each layer there is, and of the rest."""

    layers: list[float]
    rest: float


class Measurement:
    """Times cells on a subject.

    Parameters
    ----------
    subject : Subject
        The model with its prompt.
    prompt : TimedPrompt
        The same prompt on its device.
    facts : mapping
        By spec, of all cells.
    """

    def __init__(self, subject: Subject, prompt: TimedPrompt, facts: dict[str, Facts]):
        self.subject, self.prompt, self.facts = subject, prompt, facts
        self.clock: Clock = prompt.clock
        parts = subject.parts
        self.tower: list[nn.Module] = [] if parts.tower is None else [parts.tower]
        with suppress(NotImplementedError):  # a family whose projector is not known
            projector = projector_of(parts)
            if self.tower and all(m is not projector for m in parts.tower.modules()):
                self.tower.append(projector)
        self.tower_layers = list(subject.tower_layers)
        self.layers = list(parts.layers)
        self.lm: Any = parts.lm

    def lengths(self) -> list[int]:
        """What the stock text model is run on."""
        try:
            self._stock(next(iter(self.facts.values())).lengths[-1])
        except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError, KeyError):
            return []  # a text model that can't run without its composite model
        return sorted({n for facts in self.facts.values() for n in facts.lengths})

    @torch.no_grad()
    def run(
        self, cells: Sequence[Cell], lengths: Sequence[int], rounds: int, seed: int, advance: Callable[[], None]
    ) -> dict[str, Rounds]:
        """All rounds, one that warms up in front; `advance` is called after every turn and every peak."""
        found = {cell.spec: Rounds() for cell in cells}
        stock: dict[int, list[_Stock]] = {n: [] for n in lengths}
        entries: list[Cell | int] = [*cells, *lengths]
        for turn, entry in turns(entries, rounds, seed):
            if isinstance(entry, Cell):
                for part, seconds in self._read(entry).items():
                    if turn:
                        found[entry.spec].seconds.setdefault(part, []).append(seconds)
            else:
                reading = self._stock(entry)
                if turn:
                    stock[entry].append(reading)
            advance()
        for cell in cells:
            mine, facts = found[cell.spec], self.facts[cell.spec]
            mine.peak, mine.peak_of = self.prompt.memory(cell)
            mine.peak += self.subject.missing + facts.missing_kv
            if lengths:
                mine.attainable = self._attainable(facts, found[UNPRUNED.spec], stock)
            advance()
        return found

    def _read(self, cell: Cell) -> dict[str, float]:
        facts, found = self.facts[cell.spec], {}
        n, m = len(self.tower), len(self.tower_layers)
        with (
            pruned(self.subject.model, cell) as model,
            ModuleTimes([*self.tower, *self.tower_layers, *self.layers], self.clock) as times,
        ):
            handle = getattr(model, "vtc", None)
            alone = self.clock.read is None  # on a GPU choosing has a forward of its own, as it waits for the device
            if handle is not None and not alone:
                handle.timing = self.clock.read
            found["prefill"], out = self.clock.measure(lambda: self.prompt.forward(model))
            inside = times.take()
            if handle is not None:
                found["selection"] = self.prompt.choosing(model) if alone else handle.report.selection_seconds or 0.0
                handle.timing = False
                times.take()
            found["decode"], _ = self.clock.measure(lambda: self.prompt.decode(model, out))
            decoding = times.take()[n + m :]
        if self.tower:
            more = _more(inside[n : n + m], facts.tower_match)
            found["tower"] = sum(inside[:n]) + more
            found["prefill"] += more
        found["prefill"] += _more(inside[n + m :], facts.text_match)
        found["decode"] = (found["decode"] + _more(decoding, facts.text_match)) / DECODED
        return found

    @torch.no_grad()
    def _stock(self, length: int) -> _Stock:
        first, model = next(self.lm.parameters()), self.subject.model
        width = self.lm.get_input_embeddings().weight.shape[-1]
        states = torch.randn(self.prompt.batch, length, width, dtype=first.dtype, device=first.device)
        mask = torch.ones(self.prompt.batch, length, dtype=torch.long, device=first.device)
        head = model.get_output_embeddings()

        def run() -> None:
            head(self.lm(inputs_embeds=states, attention_mask=mask, use_cache=True)[0][:, -1:])

        with ModuleTimes(self.layers, self.clock) as times:
            whole, _ = self.clock.measure(run)
            layers = times.take()
        return _Stock(layers, whole - sum(layers))

    def _attainable(self, facts: Facts, plain: Rounds, stock: dict[int, list[_Stock]]) -> list[float]:
        """The unpruned prefill of each round with its text model's time exchanged for that on the tokens left."""
        unpruned, found = self.facts[UNPRUNED.spec], []
        for i, prefill in enumerate(plain.seconds["prefill"]):
            found.append(prefill - self._alone(unpruned, stock, i, unpruned) + self._alone(facts, stock, i, unpruned))
        return found

    def _alone(self, facts: Facts, stock: dict[int, list[_Stock]], turn: int, unpruned: Facts) -> float:
        by_length = {n: spread_over(stock[n][turn].layers, unpruned.text_match) for n in {*facts.lengths}}
        return stock[facts.lengths[-1]][turn].rest + sum(by_length[n][i] for i, n in enumerate(facts.lengths))


def _more(here: Sequence[float], match: list[list[int]] | None) -> float:
    """Seconds of the layers that are left out."""
    return 0.0 if match is None else sum(spread_over(here, match)) - sum(here)
