"""What a sweep shows, in two sentences, and what its reader should know first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..matching import keep_text
from ..power import MARGIN
from ..significance import BETTER, NO_EVIDENCE, WORSE
from ..summary import CellSummary
from . import words

SEEDS = 3  # of random, for its luck to be in the intervals
IMAGES = 30
APART = 0.10  # a budget is another one from here on


def verdict_kind(verdict: str) -> str:
    """``better``, ``worse``, ``none`` or nothing."""
    kinds = {BETTER: "better", WORSE: "worse", NO_EVIDENCE: "none"}
    return next((kind for text, kind in kinds.items() if verdict.startswith(text)), "")


def headline(cells: Sequence[CellSummary]) -> str:
    """How many methods beat random, in words."""
    pruned = [c for c in cells if not c.is_unpruned]
    kinds: dict[str, set[str]] = {}
    for c in pruned:
        if c.verdict:
            kinds.setdefault(c.method, set()).add(verdict_kind(c.verdict))
    if not pruned:
        return "Nothing was pruned in this sweep"
    if not kinds:
        what = "only random was run" if any(c.is_random for c in pruned) else "this sweep has no random baseline"
        return f"No method can be judged: {what}"
    n, better = len(kinds), [m for m, k in kinds.items() if "better" in k]
    if not better:
        worse = [m for m, k in kinds.items() if k == {"worse"}]
        if worse and len(worse) == n:
            return "Every method is worse than random pruning" if n > 1 else f"{words.short(worse[0])} is worse than random pruning"
        return "No method is shown to beat random pruning" if n > 1 else f"{words.short(next(iter(kinds)))} is not shown to beat random"
    many = len({c.keep for c in pruned if c.verdict}) > 1
    where = "" if not many else " at every budget" if all(kinds[m] == {"better"} for m in better) else " at some budgets"
    if n == 1:
        return f"{words.short(better[0])} beats random pruning{where}"
    if len(better) == n:
        return f"{'Both' if n == 2 else f'All {n}'} methods beat random pruning{where}"
    return f"{len(better)} of {n} methods beat{'s' if len(better) == 1 else ''} random pruning{where}"


def beaten(cells: Sequence[CellSummary]) -> str:
    """Which methods beat random or lose to it, and at which budgets."""
    parts = []
    for kind, words_of in (("better", "Better than random"), ("worse", "Worse than random")):
        keeps: dict[str, list[str]] = {}
        for c in cells:
            if verdict_kind(c.verdict) == kind:
                keeps.setdefault(c.method, []).append(keep_text(c.keep))
        names = [(words.short(m), [x for x in k if x]) for m, k in keeps.items()]
        named = [f"{m} ({', '.join(k)})" if k else m for m, k in names]
        if named:
            parts.append(f"{words_of}: {words.listed(named, 6)}.")
    return " ".join(parts)


def lower_end(cell: CellSummary) -> float:
    """The lower end of the difference to unpruned, never nearer than the rule of three allows.

    Where no answer differs the bootstrap has nothing to draw from and its interval no width; of `n` such questions a
    loss of ``3 / n`` is still within 95%.
    """
    return min(cell.difference.low, cell.difference.value - 3 / cell.n) if cell.difference and cell.n else -1.0


def cheapest(cells: Sequence[CellSummary], margin: float = MARGIN) -> CellSummary | None:
    """The finished cell of fewest tokens per layer that loses less than `margin` with 95% confidence."""
    safe = [c for c in cells if c.complete and c.difference is not None and lower_end(c) >= -margin]
    return min(safe, key=lambda c: c.tokens_per_layer / c.tokens_total if c.tokens_total else 1.0, default=None)


def spends(cell: CellSummary) -> str:
    """What a cell costs, in words."""
    parts = []
    if cell.flops_ratio is not None or cell.lm_flops_ratio is not None:
        flops = cell.lm_flops_ratio if cell.flops_ratio is None else cell.flops_ratio
        parts.append(f"{words.ratio(flops)} of the {'language model’s ' if cell.flops_ratio is None else ''}FLOPs")
    if cell.time is not None:
        parts.append(f"{words.ratio(cell.time.ratio)} of the measured prefill time")
    if not parts and cell.tokens_total:
        parts.append(f"{100 * cell.tokens_per_layer / cell.tokens_total:.3g}% of the visual tokens per layer")
    return " and ".join(parts)


def lede(cells: Sequence[CellSummary], margin: float = MARGIN) -> str:
    """The cheapest setting that is safe, or that there is none."""
    found, close = cheapest(cells, margin), f"{100 * margin:g} points"
    gaps = [c for c in cells if c.difference is not None]
    if found is not None and found.difference is not None:
        return (
            f"The cheapest setting that stays within {close} of the unpruned model (95% confidence) is {words.short(found.label, 60)}: "
            f"{words.points(found.difference)} points {words.ends(found.difference)} at {spends(found)}."
        )
    if not gaps:
        return "There is no paired difference to the unpruned model yet."
    best = max(gaps, key=lambda c: c.difference.value if c.difference else 0.0)
    return (
        f"No setting is shown to stay within {close} of the unpruned model; the closest is {words.short(best.label, 60)}: "
        f"{words.points(best.difference)} points {words.ends(best.difference)} at {spends(best)}."
    )


def notices(cells: Sequence[CellSummary], about: dict[str, Any], images: int) -> list[str]:
    """What limits the numbers, the gravest first."""
    pruned, found = [c for c in cells if not c.is_unpruned], []
    if open_cells := sum(not c.complete for c in cells):
        found.append(
            f"{open_cells} of {len(cells)} lines are unfinished; they are compared on the questions that both sides have."
        )
    if pruned and not any(c.is_unpruned for c in cells):
        found.append("The unpruned model was not run, so there are no differences to it.")
    randoms = [c for c in pruned if c.is_random]
    if pruned and not randoms:
        found.append("Random was not run: add it (--pruners random,...) to learn which methods beat it.")
    elif randoms and (fewest := min(max(1, len(c.specs)) for c in randoms)) < SEEDS:
        luck = "its luck is not in the intervals" if fewest == 1 else "its luck is only roughly in the intervals"
        found.append(f"Random has {fewest} seed{'s' if fewest > 1 else ''}: {luck}. {SEEDS} or more are better.")
    apart = [c for c in pruned if c.against_ratio is not None and abs(c.against_ratio - 1) > APART]
    if apart:
        found.append(
            f"{words.listed(list(dict.fromkeys(words.short(c.method) for c in apart)))} spend other visual tokens per layer than "
            "the random cells beside them (marked in the table); --match mean-tokens or --match flops compares at "
            "equal compute."
        )
    if 0 < images < IMAGES:
        found.append(f"There are only {images} images: intervals over so few are rough.")
    counted, timed = (any(x is not None for x in (getattr(c, name) for c in pruned)) for name in ("lm_flops_ratio", "time"))
    if pruned and not (counted and timed):
        flops, times = "FLOPs were not counted", "times were not measured"
        found.append(f"{flops}." if timed else f"{times.capitalize()}." if counted else f"{flops} and {times}.")
    return found


def budget_note(cell: CellSummary) -> str:
    """That a cell spends more or less than the random one beside it, if it does."""
    if cell.against_ratio is None or abs(cell.against_ratio - 1) <= APART:
        return ""
    return f"at {cell.against_ratio:.2f}× its tokens per layer"


def sweep_line(cells: Sequence[CellSummary], about: dict[str, Any]) -> str:
    """What was run on what."""
    data = about.get("data") or {}
    methods = len({c.method for c in cells if not c.is_unpruned})
    keeps = [k for k in dict.fromkeys(c.keep for c in cells) if k is not None]
    parts = [f"{methods} method{'s' if methods != 1 else ''}"]
    if keeps:
        parts[0] += f" at {words.listed([keep_text(k) for k in keeps], 6)}"
    if about.get("model"):
        parts.append(f"model {about['model']}")
    if data.get("name"):
        parts.append(f"data {data['name']} {data.get('version', '')}".strip())
    return " · ".join(parts)
