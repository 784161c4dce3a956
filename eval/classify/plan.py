"""The cells of a classifier's sweep: methods inside the tower, and random at exactly what each of them keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from vtc.eval.sweep.plan import ALL, Plan
from vtc.eval.vlm.feature_cache import pruned
from vtc.eval.vlm.pruning_settings import DEPTH, RANDOM, UNPRUNED, Cell, is_random, takes_keep, takes_seed
from vtc.models.tower.bare_vit import VitAdapter
from vtc.pipeline_text import format_pipeline, parse
from vtc.pruners import list_pruners
from vtc.pruners.base import Pruner, Stop

DEFAULT_METHODS = ("tome", "zero_tprune")
DEFAULT_KEEPS: tuple[int | float, ...] = (0.7, 0.5, 0.25)
EARLY = 3  # a method that has to be told its layer gets the one at a third of the depth


def in_tower(pruner: Pruner, depth: int) -> Pruner:
    """`pruner` inside a tower of `depth` blocks: ``at="vision"`` where it has that choice and nobody has made it."""
    stages = {stop.stage for stop in pruner.stops(DEPTH)}
    if stages == {"vision"} or getattr(pruner, "at", "") is not None:
        return pruner
    for layer in (getattr(pruner, "layer", None), max(1, depth // EARLY)):
        try:
            return replace(pruner, at="vision", layer=layer)  # type: ignore[call-arg]
        except ValueError:  # it needs a layer
            continue
    return pruner


def make_cells(method: str, keep: int | float | None, seeds: Sequence[int], depth: int) -> list[Cell]:
    """The cell of a method, or one for each of `seeds` where it draws at random."""
    pipeline = tuple(in_tower(p, depth) for p in parse(method, keep=keep))
    if not takes_seed(pipeline, method):
        return [_cell(method, keep, pipeline)]
    found = [_cell(method, keep, _seeded(pipeline, seed), seed) for seed in seeds]
    return list({cell.spec: cell for cell in found}.values())


def _seeded(pipeline: Sequence[Pruner], seed: int) -> tuple[Pruner, ...]:
    given: Any = {"seed": seed}
    return tuple(replace(p, **given) if hasattr(p, "seed") else p for p in pipeline)


def _cell(method: str, keep: int | float | None, pipeline: Sequence[Pruner], seed: int | None = None) -> Cell:
    spec, line = format_pipeline(pipeline), f"{method} keep={keep}" if seed is not None else ""
    return Cell(method, keep, spec, encoder=spec, vision_stage=True, seed=seed, line=line)


def stops_of(model: nn.Module, cell: Cell) -> list[Stop]:
    """Where a cell prunes in this tower, and what it keeps there.

    Raises
    ------
    ValueError, NotImplementedError
        For a method that can't run in it.
    """
    stops = VitAdapter(model, parse(cell.spec)).stops
    return [stop._replace(layer=layer) for layer in sorted(stops) for _, stop in stops[layer]]


def random_like(model: nn.Module, cell: Cell, seeds: Sequence[int]) -> list[Cell]:
    """Random at the layers at which `cell` prunes, keeping as many there."""
    stops = stops_of(model, cell)
    drawn = [" + ".join(f"random(keep={s.keep}, seed={x}, at='vision', layer={s.layer})" for s in stops) for x in seeds]
    # parentheses would make a pipeline's name of it
    name = f"{RANDOM} (as {cell.method.translate(str.maketrans('()+', '[]&'))})"
    return [
        replace(_cell(name, cell.keep, parse(spec), seed), line=f"{name} keep={cell.keep}")
        for spec, seed in zip(drawn, seeds, strict=True)
    ]


def plan_cells(
    model: nn.Module, methods: Sequence[str], keeps: Sequence[int | float], seeds: Sequence[int], random: bool = True
) -> Plan:
    """All cells, the unpruned model first; behind each method's line random's.

    Parameters
    ----------
    model : nn.Module
        Has the tower; each method is attached to it once.
    methods, keeps : sequence
        What is asked for. ``"all"`` is every registered method that can run, and plain ``"random"`` beside others asks
        for the random cells.
    seeds : sequence of int
        Of methods that draw at random.
    random : bool
        Put random beside every other method.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        For a method that is unknown or can't run in this tower, unless it is one of "all".
    """
    depth = len(VitAdapter(model, ()).blocks)
    named = [m for m in dict.fromkeys(methods) if m not in ("unpruned", "none", ALL)]
    random = random or RANDOM in named
    others = [m for m in list_pruners() if m not in named] if ALL in methods else []
    if [m for m in [*named, *others] if not is_random(m)]:
        named, others = ([m for m in part if m != RANDOM] for part in (named, others))
    cells, left_out = [UNPRUNED], {}
    for method in [*named, *others]:
        own = not any(map(takes_keep, parse(method)))
        drawn: list[Cell] = []
        for keep in [None] if own else keeps:
            try:
                made = make_cells(method, keep, seeds, depth)
                with pruned(model, made[0]):
                    pass
            except (ValueError, TypeError, NotImplementedError) as error:
                if method in named:
                    raise
                left_out[method] = str(error)
                continue
            if random and not is_random(method):
                drawn += random_like(model, made[0], seeds)
            cells += made
        cells += drawn
    return Plan(list({cell.spec: cell for cell in cells}.values()), frozenset(others), left_out)
