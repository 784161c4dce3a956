"""The cost of a sweep's lines: timed in turns, FLOPs counted by part, both on the first question's prompt."""

from __future__ import annotations

from dataclasses import replace

from rich.progress import Progress

from .cells import first_of_lines
from .cost import Cost
from .prompt import make_row
from .runner import Sweep
from .store import ResultStore
from .timing import measure_costs

PER_LAYER = "visual_per_layer"


def sweep_costs(sweep: Sweep, repeats: int, progress: Progress, store: ResultStore) -> dict[str, Cost]:
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
    """
    from .flops import LMFlops, count_flops

    cells = first_of_lines(sweep.cells)
    first = sweep.tasks.questions[0]
    row = make_row(sweep.loaded.processor, sweep.model.config, sweep.tasks.visuals(first, sweep.frames), first)
    costs: dict[str, Cost] = {cell.spec: Cost() for cell in cells}
    if repeats:
        bar = progress.add_task("timing", total=len(cells) * (repeats + 1))
        costs = measure_costs(sweep.model, cells, row, repeats, lambda: progress.advance(bar))
    if sweep.cost is None:
        return costs
    try:
        lm, plain = LMFlops(sweep.model), None
        for cell in cells:
            lengths = [len(row.ids) - row.visual + n for n in store.rows[cell.spec, first.question_id][PER_LAYER]]
            found = count_flops(sweep.model, cell, row, lengths, lm, None if cell.vision_stage else plain)
            plain = plain if cell.vision_stage else found
            costs[cell.spec] = replace(
                costs[cell.spec], vision_flops=found.vision, projector_flops=found.projector, lm_flops=found.lm,
                head_flops=found.head,
            )  # fmt: skip
    except NotImplementedError as e:  # the answers are worth more than this
        progress.console.print(f"{e}: no FLOPs by part", style="yellow")
    return costs
