"""v, s and f of each target's method, measured on the model in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vtc.eval.cost.flops import LMFlops
from vtc.eval.cost.interleaved_timing import measure_shares
from vtc.eval.cost.prefill_cost import Measured
from vtc.eval.tasks.questions import TaskSet
from vtc.eval.vlm.encode_once import to_device
from vtc.eval.vlm.feature_cache import pruned
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.prompts import Row, make_row
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell, make_cell

from .options import LoadOptions
from .speed_limit import Limit
from .targets import Target

TURNS = 10  # the first is not counted
SECONDS = 120.0  # in which they are taken, on models that are slow here fewer of them


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
    options: LoadOptions, tasks: TaskSet, advance: Callable[[], None] = lambda: None
) -> dict[str, Limit]:
    """The limit of each target that prunes, on the first picture of the test; at most ``TURNS`` turns.

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
    once = list(dict.fromkeys(cells.values()))
    share, choosing = measure_shares(loaded.model, once, row, TURNS - 1, SECONDS, advance)
    lm = LMFlops(loaded.model)
    before = _flops(loaded.model, UNPRUNED, row, lm)
    return {
        name: Limit(
            share,
            choosing[cell.spec],
            _flops(loaded.model, cell, row, lm) / before,
        )
        for name, cell in cells.items()
    }


@torch.no_grad()
def _flops(model: Any, cell: Cell, row: Row, lm: LMFlops) -> int:
    """FLOPs of the language model's layers, and of what the method has them or a network of its own compute before."""
    depth = len(lm.layers)
    if cell is UNPRUNED:
        return lm.prefill([len(row.ids)] * depth)
    given = {name: to_device(value, model) for name, value in {**row.text, **row.vision}.items()}
    with pruned(model, cell) as wrapped:
        wrapped(**given, use_cache=True, logits_to_keep=1)
        measured = Measured.from_report(wrapped.vtc.report, 0, depth)
    return lm.prefill([len(row.ids) - row.visual + n for n in measured.per_layer], measured.asked) + measured.own
