"""The cost of a sweep's lines: timed in turns, FLOPs counted by part, both on the first question's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.progress import Progress

from vtc.eval.cost.interleaved_timing import measure_costs, steps_of, try_ahead
from vtc.eval.cost.prefill_cost import Cost
from vtc.eval.terminal.progress_bars_and_eta import Estimator
from vtc.eval.vlm.prompts import Row, make_row
from vtc.eval.vlm.pruning_settings import Cell, first_of_lines
from vtc.eval.vlm.smaller_pictures import SmallRows

from .results_store import ResultStore
from .sweep_run import Sweep

PER_LAYER, ASKED, OWN = "visual_per_layer", "asked_alone", "own_flops"


def first_row(sweep: Sweep) -> Row:
    """The prompt that costs are measured on."""
    first = sweep.tasks.questions[0]
    return make_row(sweep.loaded.processor, sweep.model.config, sweep.tasks.visuals(first, sweep.frames), first)


def first_rows(sweep: Sweep, cells: Sequence[Cell]) -> tuple[Row, dict[str, Row]]:
    """``first_row``, and by spec the same with smaller pictures, for the cells that show those."""
    row, small = first_row(sweep), SmallRows(sweep.loaded.processor, sweep.model)
    visuals = sweep.tasks.visuals(row.question, sweep.frames)
    return row, {c.spec: small.shown(c, row, visuals) for c in cells if c.small}


def expect_timing(sweep: Sweep, repeats: int, estimator: Estimator, ahead: bool) -> None:
    """Have the estimate of the time left count the timing behind the answers, and try `ahead` how long it takes."""
    cells = first_of_lines(sweep.cells)
    estimator.left.update(steps_of(cells, repeats))
    estimator.alone |= {*steps_of(cells, repeats)}
    if not (repeats and ahead):
        return
    for step, seconds in try_ahead(sweep.model, cells, *first_rows(sweep, cells), repeats).items():
        estimator.expect(step, seconds)


def sweep_costs(
    sweep: Sweep, repeats: int, progress: Progress, store: ResultStore, estimator: Estimator
) -> dict[str, Cost]:
    """Costs by spec.

    Parameters
    ----------
    sweep : Sweep
        All of it is answered.
    repeats : int
        Measured turns; 0 leaves times and memory out.
    progress : Progress
        Gets a bar for the timings.
    store : ResultStore
        Knows how many tokens each layer saw.
    estimator : Estimator
        Of the time left; see ``expect_timing``.
    """
    from vtc.eval.cost.flops import LMFlops, count_flops

    cells = first_of_lines(sweep.cells)
    first = sweep.tasks.questions[0]
    row, small = first_rows(sweep, cells)
    costs: dict[str, Cost] = {cell.spec: Cost() for cell in cells}
    if repeats:
        bar = progress.add_task("timing", total=sum(steps_of(cells, repeats).values()), estimator=estimator)

        def advance(step: str) -> None:
            estimator.done(step, 1)
            progress.advance(bar)

        estimator.skip()
        costs = measure_costs(sweep.model, cells, row, repeats, advance, small)
    if sweep.cost is None:
        return costs
    try:
        lm, plain = LMFlops(sweep.model), None
        for cell in cells:
            answered = store.rows[cell.spec, first.question_id]
            shown = small.get(cell.spec, row)
            lengths = [len(shown.ids) - shown.visual + n for n in answered[PER_LAYER]]
            same = None if cell.vision_stage else plain
            found = count_flops(sweep.model, cell, shown, lengths, lm, same, answered.get(ASKED, 0))
            plain = plain if cell.vision_stage else found
            costs[cell.spec] = replace(
                costs[cell.spec],
                vision_flops=found.vision,
                projector_flops=found.projector,
                lm_flops=found.lm + answered.get(OWN, 0),
                head_flops=found.head,
            )
    except NotImplementedError as e:  # the answers are worth more than this
        progress.console.print(f"{e}: no FLOPs by part", style="yellow")
    return costs
