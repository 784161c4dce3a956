"""Which cells a sweep has: the methods asked for at every keep, and what can't run and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vtc.eval.tasks.questions import TaskSet
from vtc.eval.vlm.loading import Loaded
from vtc.eval.vlm.prompts import make_row
from vtc.eval.vlm.pruning_settings import (
    DOWNSAMPLE,
    RANDOM,
    UNPRUNED,
    Cell,
    is_downsample,
    make_seeds,
    sets_keep,
    takes_keep,
)
from vtc.eval.vlm.smaller_pictures import SmallRows

from .answer import answer_plain
from .options import BenchOptions
from .sweep_run import pruned

DEPTHS = (8, 32)  # a layer that depends on the depth is known only with the model
ALL = "all"  # every registered method that can run


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep.

    ``optional`` are the methods that nobody asked for by name, which are left out where they can't run; ``left_out``
    says which were so far, and why.
    """

    cells: list[Cell]
    optional: frozenset[str] = frozenset()
    left_out: dict[str, str] = field(default_factory=dict)

    def remarks(self) -> list[str]:
        """One line for all cells that were left out for the same reason."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            by_reason.setdefault(" ".join(reason.split()), []).append(name)
        return [f"left out: {', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def plan_cells(
    methods: Sequence[str], keeps: Sequence[int | float], seeds: Sequence[int] = (0,), random: bool = False
) -> Plan:
    """All cells of a sweep, the unpruned model first; the method ``"all"`` stands for every registered one.

    A method whose text sets every keep itself is one cell, whatever `keeps` says.

    Parameters
    ----------
    methods, keeps : sequence
        What is asked for.
    seeds : sequence of int
        Methods that take a seed are run under each.
    random : bool
        Put ``random`` in front where it was not asked for, what the methods are compared with, and at the layers at
        which others choose inside the decoder: the same keep costs more there.

    Raises
    ------
    ValueError, TypeError
        For an unknown method, parameter or keep. A method out of "all" that does not take a keep is left out instead.
    """
    from vtc.pruners import list_pruners

    named = [m for m in methods if m not in ("unpruned", "none", ALL)]
    others = [m for m in (DOWNSAMPLE, *list_pruners()) if m not in named] if ALL in methods else []
    first = [RANDOM, *late_random(named)] if random and (named or others) else []
    optional = [m for m in [*(late_random(others) if random else ()), *others] if m not in (*first, *named)]
    named = [*first, *named]
    cells, left_out = [UNPRUNED], {}
    for method in dict.fromkeys([*named, *optional]):
        for keep in [None] if sets_keep(method) else keeps:
            try:
                cells += make_seeds(method, keep, seeds)
            except (ValueError, TypeError) as error:
                if method in named:
                    raise
                left_out[_label(method, keep)] = str(error)
    # smaller pictures too: processors may know one size only
    optional = [*optional, *filter(is_downsample, named)]
    return Plan(list({cell.spec: cell for cell in cells}.values()), frozenset(optional), left_out)


def late_random(methods: Sequence[str]) -> list[str]:
    """``random`` at the decoder layers at which methods choose, for those that choose once."""
    from vtc.pipeline_text import parse

    found: dict[str, None] = {}
    for method in methods:
        pipeline = [] if is_downsample(method) else parse(method)
        stops = [pipeline[0].stops(depth) for depth in DEPTHS] if len(pipeline) == 1 else []
        layers = {stop.layer for places in stops for stop in places if stop.stage == "decoder"}
        if len(layers) == 1 and all(len(places) == 1 for places in stops) and takes_keep(pipeline[0]):
            found[f"{RANDOM}(layer={layers.pop()})"] = None
    return list(found)


def plan_sweep(options: BenchOptions) -> tuple[Plan, dict[str, Cell]]:
    """The cells that are asked for, and those of a recipe by their labels."""
    seeds = options.every_seed
    if options.recipe is None:
        return plan_cells(options.pruners, options.keeps, seeds, options.random), {}
    asked = options.recipe.bench_cells(options.seed or None)
    keeps = [cell.keep for cell in asked.values() if cell.keep is not None]
    base = [UNPRUNED]
    if options.random and keeps:
        base = plan_cells([RANDOM, *late_random([options.recipe.pruner])], keeps, seeds).cells
    cells = {cell.spec: cell for cell in [*base, *asked.values()]}
    return Plan(list(cells.values())), asked


def chosen_cells(plan: Plan, only: Sequence[str] | None) -> Plan:
    """The plan's cells of these specs.

    Raises
    ------
    ValueError
        For a spec that is none of them; those that are are listed.
    """
    if only is None:
        return plan
    of = {cell.spec: cell for cell in plan.cells}
    for spec in only:
        if spec not in of:
            raise ValueError(f"--cell {spec!r} is not of this sweep, which has: {'; '.join(of)}")
    return replace(plan, cells=[of[spec] for spec in dict.fromkeys(only)])


def leave_out(plan: Plan, loaded: Loaded, tasks: TaskSet) -> Plan:
    """Leave out the optional cells that can't run on this model.

    Each is attached, and of each method the first one answers the first question.
    """
    if not plan.optional:
        return plan
    first = tasks.questions[0]
    visuals = tasks.visuals(first)
    row = make_row(loaded.processor, loaded.model.config, visuals, first)
    small = SmallRows(loaded.processor, loaded.model)
    cells, left_out, ran = [], dict(plan.left_out), set()
    for cell in plan.cells:
        try:
            if cell.method in plan.optional:
                shown = small.shown(cell, row, visuals)
                with pruned(loaded.model, cell) as model:
                    if cell.method not in ran:
                        answer_plain(model, loaded.processor, [shown], None, 1)
                ran.add(cell.method)
            cells.append(cell)
        except (ValueError, NotImplementedError) as error:
            left_out[_label(cell.method, cell.keep)] = str(error)
    return replace(plan, cells=cells, left_out=left_out)


def _label(method: str, keep: int | float | None) -> str:
    return method if keep is None else f"{method} at {keep}"
