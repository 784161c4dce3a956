"""Random baselines at the budgets that a sweep's methods really have, measured on a few images before it starts.

At a keep of a quarter a method that prunes behind layer 2 sees more visual tokens per layer than one that prunes at the
input, an adaptive one what it likes, and a smaller picture has as many as its sides allow: none of these is to be
compared with random at a quarter.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from vtc.eval.tasks.questions import TaskSet
from vtc.eval.vlm.encode_once import reuses_encoder
from vtc.eval.vlm.feature_cache import Features, pruned
from vtc.eval.vlm.loading import Loaded
from vtc.eval.vlm.prompts import Row, make_row
from vtc.eval.vlm.pruning_settings import DEPTH, RANDOM, UNPRUNED, Cell, first_of_lines, is_random, make_seeds
from vtc.eval.vlm.smaller_pictures import SmallRows, Visuals
from vtc.pipeline_text import parse

from .answer import answer_plain
from .plan import Plan

IMAGES = 3
CLOSE = 0.05  # as a share of the budget: no further baseline for less
NOTHING = 0.97  # of all tokens: hardly pruned at all


def measured_budget(loaded: Loaded, cell: Cell, rows: Sequence[Row], features: Features) -> float:
    """Visual tokens per decoder layer under a cell, as a share of the unpruned model's, averaged over `rows`."""
    with pruned(loaded.model, cell):
        pass  # a method that can't run says so itself, before pictures are encoded for all of them
    reuse = reuses_encoder(loaded.model)
    encoded = [[features.get(cell, row)] if reuse else None for row in rows]
    with pruned(loaded.model, cell) as model:
        found = [
            answer_plain(model, loaded.processor, [row], vision, 1)[0].measured
            for row, vision in zip(rows, encoded, strict=True)
        ]
    return statistics.fmean(m.mean / m.total for m in found)


def smaller_budget(small: SmallRows, cell: Cell, firsts: Sequence[tuple[Row, Visuals]]) -> float:
    """Visual tokens of the smaller pictures that a cell shows, as a share of those of the pictures as they are."""
    shown = [small.shown(cell, row, visuals) for row, visuals in firsts]
    return statistics.fmean(row.visual / row.total for row in shown)


def _like_random(cell: Cell, keeps: Sequence[int | float | None]) -> bool:
    """Whether a cell is known to spend what random does at the same keep: one choice before the decoder, no more."""
    pipeline = parse(cell.spec)
    stops = pipeline[0].stops(DEPTH)
    before = len(pipeline) == len(stops) == 1 and stops[0].stage != "decoder"
    return before and not pipeline[0].adaptive_count and cell.keep in keeps


def add_baselines(plan: Plan, loaded: Loaded, tasks: TaskSet, seeds: Sequence[int]) -> Plan:
    """Add ``random`` at each measured budget that no random cell of the plan is near to.

    Parameters
    ----------
    plan : Plan
        The cells asked for; without any of ``random`` nothing is added.
    loaded : Loaded
        The model. The first cell of each line whose budget is not known answers one question on each of a few images.
    tasks : TaskSet
        The first question of its first ``IMAGES`` images are those.
    seeds : sequence of int
        For the added cells.
    """
    lines = [cell for cell in first_of_lines(plan.cells) if cell != UNPRUNED]
    randoms = [cell for cell in lines if is_random(cell.method)]
    keeps = [cell.keep for cell in randoms if cell.method == RANDOM]
    unknown = [c for c in lines if c not in randoms and (c.small or not _like_random(c, keeps))]
    if not randoms or not unknown:
        return plan
    firsts = [group[0] for group in tasks.groups()[:IMAGES]]
    seen = [tasks.visuals(q) for q in firsts]
    rows = [make_row(loaded.processor, loaded.model.config, x, q) for x, q in zip(seen, firsts, strict=True)]
    small, shown = SmallRows(loaded.processor, loaded.model), list(zip(rows, seen, strict=True))
    features = Features(loaded.model, [*randoms, *unknown])
    budgets = [measured_budget(loaded, cell, rows, features) for cell in randoms]
    added: list[Cell] = []
    for cell in unknown:
        here = smaller_budget(small, cell, shown) if cell.small else measured_budget(loaded, cell, rows, features)
        if here <= NOTHING and all(abs(here - there) > CLOSE * here for there in budgets):
            budgets.append(keep := round(here, 3) or here)
            added += make_seeds(RANDOM, keep, seeds)
    added.sort(key=lambda cell: -(cell.keep or 0))
    last = max((i for i, cell in enumerate(plan.cells) if cell.method == RANDOM), default=0)
    return replace(plan, cells=[*plan.cells[: last + 1], *added, *plan.cells[last + 1 :]])
