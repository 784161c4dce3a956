"""Which cells a sweep has: the methods asked for at every keep, and what can't run and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .answer import answer_plain
from .cells import UNPRUNED, Cell, make_seeds, takes_keep
from .loading import Loaded
from .prompt import make_row
from .runner import pruned
from .tasks import TaskSet

RANDOM = "random"
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
        Put ``random`` in front where it was not asked for: what the methods are compared with.

    Raises
    ------
    ValueError, TypeError
        For an unknown method, parameter or keep. A method out of "all" that does not take a keep is left out instead.
    """
    from vtc.pruners import list_pruners
    from vtc.spec import parse

    named = [m for m in methods if m not in ("unpruned", "none", ALL)]
    if random and named and RANDOM not in named and ALL not in methods:
        named.insert(0, RANDOM)
    optional = [m for m in list_pruners() if m not in named] if ALL in methods else []
    cells, left_out = [UNPRUNED], {}
    for method in [*named, *optional]:
        own = not any(map(takes_keep, parse(method)))
        for keep in [None] if own else keeps:
            try:
                cells += make_seeds(method, keep, seeds)
            except (ValueError, TypeError) as error:
                if method in named:
                    raise
                left_out[_label(method, keep)] = str(error)
    return Plan(list({cell.spec: cell for cell in cells}.values()), frozenset(optional), left_out)


def leave_out(plan: Plan, loaded: Loaded, tasks: TaskSet) -> Plan:
    """Leave out the optional cells that can't run on this model.

    Each is attached, and of each method the first one answers the first question.
    """
    if not plan.optional:
        return plan
    first = tasks.questions[0]
    row = make_row(loaded.processor, loaded.model.config, tasks.visuals(first), first)
    cells, left_out, ran = [], dict(plan.left_out), set()
    for cell in plan.cells:
        try:
            if cell.method in plan.optional:
                with pruned(loaded.model, cell) as model:
                    if cell.method not in ran:
                        answer_plain(model, loaded.processor, [row], None, 1)
                ran.add(cell.method)
            cells.append(cell)
        except (ValueError, NotImplementedError) as error:
            left_out[_label(cell.method, cell.keep)] = str(error)
    return replace(plan, cells=cells, left_out=left_out)


def _label(method: str, keep: int | float | None) -> str:
    return method if keep is None else f"{method} at {keep}"
