"""Which cells spend the same: nothing is interpolated, the nearest measured cell counts or the method has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vtc.eval.sweep.options import RULES

from .cell_summary import CellSummary, keep_text

TOLERANCE = 0.10


@dataclass
class Match:
    """The cells of one budget.

    Attributes
    ----------
    rule : str
        One of ``RULES``.
    budget : int or float
        A keep, or a ratio to the unpruned model.
    cells : dict
        The nearest cell of each method that reaches the budget.
    missed : dict
        Why the others don't, in words.
    """

    rule: str
    budget: int | float
    cells: dict[str, CellSummary] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The budget as people write it."""
        if self.rule == "keep":
            return f"keep {keep_text(self.budget)}"
        return f"{100 * self.budget:.3g}% of the {'FLOPs' if self.rule == 'flops' else 'tokens per layer'}"


def spent(cell: CellSummary, rule: str) -> float | None:
    """What a cell spends as a ratio to the unpruned model; None where it was not measured.

    ``mean-tokens`` are the visual tokens averaged over the decoder layers, ``flops`` those of the whole prefill where
    the vision tower's were counted, else of the language model.
    """
    if rule not in RULES[1:]:
        raise ValueError(f"match {rule!r} is unknown: allowed are {', '.join(RULES)}")
    if rule == "mean-tokens":
        return cell.tokens_per_layer / cell.tokens_total if cell.tokens_total else None
    return cell.lm_flops_ratio if cell.flops_ratio is None else cell.flops_ratio


def _measure(rule: str) -> str:
    """By what a rule's baselines are found: what was asked for is no measure."""
    return "mean-tokens" if rule == "keep" else rule


def nearest(cells: Sequence[CellSummary], budget: float, rule: str) -> CellSummary | None:
    """The cell that spends most nearly `budget`; the first of several."""
    known = [(abs(value - budget), i) for i, c in enumerate(cells) if (value := spent(c, rule)) is not None]
    return cells[min(known)[1]] if known else None


def random_partner(cell: CellSummary, randoms: Sequence[CellSummary], rule: str = "keep") -> CellSummary | None:
    """The random cell that spends most nearly what `cell` was measured to.

    What was asked for is no budget: at a keep of a quarter, a method that prunes behind layer 2 computes more than one
    that prunes at the input. So ``keep`` and ``mean-tokens`` go by the visual tokens per layer, ``flops`` by FLOPs.
    """
    rule = _measure(rule)
    here = spent(cell, rule)
    same = [r for r in randoms if _same_keep(r.keep, cell.keep)]
    return None if here is None else nearest([*same, *randoms], here, rule)


def same_budget(a: CellSummary, b: CellSummary, rule: str = "keep", tolerance: float = TOLERANCE) -> bool:
    """Whether two cells spend the same but for a share of `tolerance`."""
    x, y = (spent(cell, _measure(rule)) for cell in (a, b))
    return x is not None and y is not None and abs(x - y) <= tolerance * max(x, y)


def _same_keep(a: int | float | None, b: int | float | None) -> bool:
    return a == b and isinstance(a, int) == isinstance(b, int)  # 1 token is not all of them, 1.0


def match_cells(summaries: Sequence[CellSummary], by: str = "keep", tolerance: float = TOLERANCE) -> list[Match]:
    """Group the pruned cells by what they spend, most first.

    Parameters
    ----------
    summaries : sequence of CellSummary
        Of one sweep; the unpruned cell is left out.
    by : str
        ``keep``, ``mean-tokens`` or ``flops``. The budgets of the latter two are those of the random cells, else of the
        method with most cells.
    tolerance : float
        How far a cell may be from the budget, as a share of it.

    Raises
    ------
    ValueError
        For an unknown rule or a tolerance that is not in [0, 1).
    """
    if by not in RULES or not 0 <= tolerance < 1:
        raise ValueError(f"match {by!r} with tolerance {tolerance}: allowed are {', '.join(RULES)} and 0 to below 1")
    methods: dict[str, list[CellSummary]] = {}
    for cell in summaries:
        if not cell.is_unpruned:
            methods.setdefault(cell.method, []).append(cell)
    if not methods:
        return []
    if by == "keep":
        return _by_keep(methods)
    leader = next((cells for cells in methods.values() if cells[0].is_random), max(methods.values(), key=len))
    budgets = dict.fromkeys(value for cell in leader if (value := spent(cell, by)) is not None)
    matches = [Match(by, budget) for budget in sorted(budgets, reverse=True)]
    for match in matches:
        for method, cells in methods.items():
            found = nearest(cells, match.budget, by)
            here = None if found is None else spent(found, by)
            if found is None or here is None:
                match.missed[method] = "not measured"
            elif abs(here - match.budget) <= tolerance * match.budget:
                match.cells[method] = found
            else:
                keep = "" if found.keep is None else f" (keep {keep_text(found.keep)})"
                match.missed[method] = f"can't reach it: nearest is {100 * here:.3g}%{keep}"
    return matches


def _by_keep(methods: dict[str, list[CellSummary]]) -> list[Match]:
    # random is also run at budgets that only it has a keep for: baselines of methods that spend more than their keep
    others = {m: cells for m, cells in methods.items() if not cells[0].is_random} or methods
    keeps = dict.fromkeys((isinstance(c.keep, int), c.keep) for cells in others.values() for c in cells)
    asked = sorted(((is_int, keep) for is_int, keep in keeps if keep is not None), key=lambda k: (k[0], -k[1]))
    matches = [Match("keep", keep) for _, keep in asked]
    for match in matches:
        for method, cells in methods.items():
            found = next((c for c in cells if _same_keep(c.keep, match.budget)), None)
            if found is not None:
                match.cells[method] = found
            else:
                own = all(c.keep is None for c in cells)
                match.missed[method] = "sets its own budget" if own else "was not run at this keep"
    return matches
