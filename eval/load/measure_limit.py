"""v, s and f of each target's method, measured on the model in this process."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vtc.eval.cost.flops import LMFlops
from vtc.eval.cost.interleaved_timing import clock, measure_costs
from vtc.eval.cost.prefill_cost import Measured
from vtc.eval.tasks.questions import TaskSet
from vtc.eval.vlm.encode_once import encode, to_device
from vtc.eval.vlm.feature_cache import pruned
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.prompts import Row, make_row
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell, make_cell

from .options import LoadOptions
from .speed_limit import Limit
from .targets import Target

REPEATS = 9


def cells_of(targets: Sequence[Target]) -> dict[str, Cell]:
    """The method of each target that prunes.

    Raises
    ------
    ValueError
        If a target says what is kept, but not by which method.
    """
    found = {}
    for target in targets:
        method, keep = target.setting
        if method is None and keep is not None:
            raise ValueError(
                f"target {target.name!r}: to measure its limit the method must be known: say pruner=NAME keep=N"
            )
        if method is not None:
            found[target.name] = make_cell(str(method), keep)
    return found


def measure_limits(
    options: LoadOptions, tasks: TaskSet, advance: Callable[[str], None] = lambda step: None
) -> dict[str, Limit]:
    """The limit of each target that prunes, on the first picture of the test.

    Raises
    ------
    ValueError, NotImplementedError
        If a method does not run on the model, or FLOPs aren't counted.
    """
    cells = cells_of(options.targets)
    if not cells:
        return {}
    loaded = load_model(options.measure_limit, options.device, options.dtype)
    question = next(q for q in tasks.questions if q.kind == "image" and len(q.media) == 1)
    picture = tasks.image(question.media[0]).convert("RGB")
    if options.picture_side is not None:
        picture = picture.resize((options.picture_side, options.picture_side))
    row = make_row(loaded.processor, loaded.model.config, picture, question)
    costs = measure_costs(loaded.model, [UNPRUNED, *dict.fromkeys(cells.values())], row, REPEATS, advance)
    plain = costs[UNPRUNED.spec]
    assert plain.prefill is not None  # measured above
    tower = _tower_seconds(loaded.model, row) if plain.vision is None else plain.vision.median
    lm = LMFlops(loaded.model)
    before = lm.prefill(_lengths(loaded.model, UNPRUNED, row, len(lm.layers)))
    found = {}
    for name, cell in cells.items():
        selection = costs[cell.spec].selection
        found[name] = Limit(
            min(1.0, tower / plain.prefill.median),
            (selection.median if selection else 0.0) / plain.prefill.median,
            lm.prefill(_lengths(loaded.model, cell, row, len(lm.layers))) / before,
        )
    return found


def _tower_seconds(model: Any, row: Row) -> float:
    """The tower by itself, where transformers' versions don't let a forward take what it gave."""
    device = next(model.parameters()).device
    readings = [clock(device, lambda: encode(model, row))[0] for _ in range(REPEATS + 1)]
    return statistics.median(readings[1:])


@torch.no_grad()
def _lengths(model: Any, cell: Cell, row: Row, depth: int) -> list[int]:
    """Tokens that each decoder layer sees."""
    if cell is UNPRUNED:
        return [len(row.ids)] * depth
    text = {"input_ids": row.ids[None], **{k: v[None] for k, v in row.tokens.items()}}
    given = {name: to_device(value, model) for name, value in {**text, **row.vision}.items()}
    with pruned(model, cell) as wrapped:
        wrapped(**given, use_cache=True, logits_to_keep=1)
        measured = Measured.from_report(wrapped.vtc.report, 0, depth)
    return [len(row.ids) - row.visual + n for n in measured.per_layer]
