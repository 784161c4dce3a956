"""What does not change from round to round: tokens of each layer, where a method prunes, KV bytes, FLOPs ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.eval.cost.flops import LMFlops, vision_flops_inside
from vtc.eval.cost.prefill_cost import Measured
from vtc.eval.cost.timed_prompt import TimedPrompt
from vtc.eval.vlm.feature_cache import pruned
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell
from vtc.models.adapter import Adapter
from vtc.models.layout.model_parts import locate
from vtc.models.layout.run_projector import projector_of
from vtc.models.stock.call_arguments import cache_of
from vtc.pipeline_text import parse

from .layer_match import spread_over
from .subject import Subject


@dataclass(frozen=True)
class Facts:
    """Of one cell.

    Attributes
    ----------
    visual : tuple of int
        Visual tokens of a sample in each layer of the full depth.
    text : int
        Its other tokens.
    text_match, tower_match : list
        Which measured layers stand for which of all (``Layers.match``); no match without a tower.
    kv_bytes, missing_kv : int
        Of the cache behind the prefill, whole batch, all layers; and of those layers that are left out.
    in_tower : bool
        Whether it prunes inside the tower.
    asked : int
        Tokens of a question that the language model reads alone before.
    own : int
        FLOPs of the method's own network, where it counts them.
    """

    visual: tuple[int, ...]
    text: int
    text_match: list[list[int]]
    tower_match: list[list[int]] | None
    kv_bytes: int
    missing_kv: int
    in_tower: bool
    asked: int = 0
    own: int = 0

    @property
    def lengths(self) -> list[int]:
        """Tokens of each layer."""
        return [self.text + n for n in self.visual]

    @property
    def mean_visual(self) -> float:
        """Visual tokens, averaged over the layers."""
        return sum(self.visual) / len(self.visual)


@torch.no_grad()
def facts_of(subject: Subject, prompt: TimedPrompt, cell: Cell) -> Facts:
    """Run a cell once and look.

    Raises
    ------
    ValueError, NotImplementedError
        If it does not run on the model, or its figures can't be extrapolated.
    """
    depth = len(subject.text.picked)
    try:
        with pruned(subject.model, cell) as model:
            out = prompt.forward(model)
            here = _stops(model.vtc.adapter) if cell != UNPRUNED else ([], [])
            row = prompt.row
            measured = Measured.unpruned(row.visual, depth)
            if cell != UNPRUNED:
                measured = Measured.from_report(model.vtc.report, 0, depth)
        full = here
        if subject.cut and cell != UNPRUNED:
            full = _stops(Adapter(locate(subject.full), parse(cell.spec)))
        text_match = subject.text.match("decoder", full[0], here[0])
        tower_match = None if subject.tower is None else subject.tower.match("tower", full[1], here[1])
    except (ValueError, NotImplementedError) as error:
        more = "" if not subject.cut else "; --layers and --tower-layers say how many are measured"
        raise type(error)(f"{cell.spec}: {error}{more}") from None
    held = [_bytes(layer) for layer in cache_of(out).layers]
    held += [0] * (depth - len(held))  # layers that read the keys of others
    all_layers = round(sum(spread_over(held[:depth], text_match)))
    visual = tuple(round(n) for n in spread_over(measured.per_layer, text_match))
    return Facts(
        visual,
        len(row.ids) - row.visual,
        text_match,
        tower_match,
        all_layers,
        all_layers - sum(held),
        cell.vision_stage,
        measured.asked,
        measured.own,
    )


def _stops(adapter: Any) -> tuple[list[int], list[int]]:
    """Layers of the decoder and of the tower before which an adapter prunes."""
    return sorted(adapter.decoder.stops), sorted(adapter.vision.stops)


def _bytes(layer: Any) -> int:
    """Bytes that a cache layer holds: keys and values, or states."""
    names = ("keys", "values", "conv_states", "recurrent_states")
    held: list[Any] = [vars(layer).get(name) for name in names]
    tensors = [x for value in held for x in (value.values() if isinstance(value, dict) else [value])]
    return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))


class FlopRatios:
    """FLOPs of cells over those of the unpruned model, all layers counted, each length and tower once."""

    def __init__(self, subject: Subject, prompt: TimedPrompt, plain: Facts):
        self.subject, self.prompt, self.plain = subject, prompt, plain
        self.lm = LMFlops(subject.model)
        self._whole = self._decoder(plain)
        self._tower: tuple[float, float] | None = None

    def _decoder(self, facts: Facts) -> float:
        lengths = {*facts.lengths, *([facts.asked] if facts.asked else [])}
        by_length = {n: spread_over(self.lm.of_layers(n), self.plain.text_match) for n in lengths}
        alone = sum(by_length[facts.asked]) if facts.asked else 0
        return facts.own + alone + sum(by_length[n][i] for i, n in enumerate(facts.lengths))

    def decoder(self, facts: Facts) -> float:
        """f: of the decoder layers."""
        return self._decoder(facts) / self._whole

    def tower(self, cell: Cell, facts: Facts) -> float:
        """t: of tower and projector, without what choosing multiplies between the layers."""
        if not facts.in_tower:
            return 1.0
        if self._tower is None:
            self._tower = self._vision(UNPRUNED, self.plain)
        (whole, plain), (_, mine) = self._tower, self._vision(cell, facts)
        return (whole - plain + mine) / whole

    def _vision(self, cell: Cell, facts: Facts) -> tuple[float, float]:
        """FLOPs of the whole vision call, and of the tower's layers and the projector, all layers counted."""
        layers = self.subject.tower_layers
        with pruned(self.subject.model, cell) as model:
            modules = [*layers, projector_of(self.subject.parts)]
            whole, (*inside, projector) = vision_flops_inside(model, self.prompt.row, modules)
        all_layers = sum(spread_over(inside, facts.tower_match or []))
        return whole - sum(inside) + all_layers, all_layers + projector
