"""What a sweep says before it begins: its questions, its cells, and what is left out and why."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from vtc.eval.sweep.options import BenchOptions
from vtc.eval.sweep.plan import Plan
from vtc.eval.tasks.questions import TaskSet
from vtc.eval.terminal.console import say

NAMED = 10  # skipped rows that are listed on the screen; summary.json has them all


def introduce(
    console: Console, options: BenchOptions, tasks: TaskSet, total: TaskSet, plan: Plan, model: str, folder: Path
) -> None:
    """Say it; `total` is the set that the questions were chosen from."""
    if tasks.skipped:
        more = [f"and {n} more, all in summary.json"] if (n := len(tasks.skipped) - NAMED) > 0 else []
        say(console, f"{len(tasks.skipped)} rows or questions skipped:", *tasks.skipped[:NAMED], *more)
    say(console, stated(tasks, total, options.seed))
    say(console, f"{len(plan.cells)} cells, model {model}; results in {folder}", *plan.remarks())
    if options.recipe and options.model != options.recipe.model:
        say(console, f"the recipe's model is {options.recipe.model}")


def stated(tasks: TaskSet, total: TaskSet, seed: int) -> str:
    """The questions of a sweep in one line."""
    parts = ", ".join(f"{task} {n}" for task, n in tasks.counts.items())
    some = len(tasks.questions) < len(total.questions)
    fixed = f"a fixed choice from {len(total.questions)}" if some else "all there are"
    images = len({q.image_id for q in tasks.questions})
    return (
        f"{tasks.name} {tasks.version}: {len(tasks.questions)} questions on {images} images ({fixed}; {parts}); "
        f"every cell answers the same ones; intervals: 95%, bootstrap over images, seed {seed}"
    )
