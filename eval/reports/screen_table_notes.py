"""What the tables on the screen need said in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vtc.eval.reports.wording import numbers_in_words as words
from vtc.eval.reports.wording.notices import unsteady
from vtc.eval.statistics.cell_summary import CellSummary
from vtc.eval.statistics.equal_budget import match_cells
from vtc.eval.sweep.options import RULES
from vtc.eval.tasks.questions import TaskSet


def cost_caption(cells: Sequence[CellSummary]) -> str:
    """What the ratios are of, and whether the times can be trusted."""
    base = next((c.cost for c in cells if c.is_unpruned and c.cost), None)
    if base is None:
        return ""
    parts = []
    if base.lm_flops is not None and base.tower_flops is not None:
        lm, tower = base.lm_flops + (base.head_flops or 0), base.tower_flops
        parts.append(f"{words.flops(lm)}FLOPs in the LM and {words.flops(tower)}FLOPs in tower and projector")
    if base.prefill:
        parts.append(f"{words.milliseconds(base.prefill.median)} ms to the first token")
    said = f"Unpruned: {', '.join(parts)}. " if parts else ""
    if base.prefill:
        said += f"Times: medians of {base.repeats} turns at batch 1 on one prompt."
        shaky, lines = unsteady(cells)
        if shaky:
            said += (
                f" They are rough: in {shaky} of {lines} lines the turns differ by more than half of the median "
                "(was the machine busy?)."
            )
    return said.strip()


def unreached(cells: Sequence[CellSummary], match: str) -> Iterator[str]:
    """Which methods have no cell of a budget, where they are compared at equal compute."""
    for group in match_cells(cells, match) if match in RULES[1:] else ():
        if group.missed:
            yield f"{group.label}: " + "; ".join(f"{method} {why}" for method, why in group.missed.items())


def unparsed(cells: Sequence[CellSummary], tasks: TaskSet) -> Iterator[str]:
    """How many answers hold nothing of the kind that was asked for."""
    found = []
    for cell in cells:
        if count := round(sum(f.get("unparsed", 0.0) * tasks.counts[t] for t, f in cell.official.items())):
            found.append(f"{cell.label} {count}")
    if found:
        yield (
            f"Answers that do not parse, counted as wrong, of {len(tasks.questions)}: {', '.join(found)}; their lines "
            'in results.jsonl have "parsed": "".'
        )
