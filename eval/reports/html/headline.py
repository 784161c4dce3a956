"""What a sweep shows, in two sentences."""

from __future__ import annotations

from collections.abc import Sequence

from vtc.eval.reports.wording import numbers_in_words as words
from vtc.eval.reports.wording.notices import times_shown
from vtc.eval.statistics.cell_summary import CellSummary, keep_text
from vtc.eval.statistics.power import MARGIN
from vtc.eval.statistics.significance import BETTER, NO_EVIDENCE, WORSE
from vtc.eval.statistics.which_flops import LANGUAGE, flops_ratio, flops_shown


def verdict_kind(verdict: str) -> str:
    """``better``, ``worse``, ``none`` or nothing."""
    kinds = {BETTER: "better", WORSE: "worse", NO_EVIDENCE: "none"}
    return next((kind for text, kind in kinds.items() if verdict.startswith(text)), "")


def headline(cells: Sequence[CellSummary]) -> str:
    """How many methods beat random, in words."""
    pruned = [c for c in cells if not c.is_unpruned]
    kinds: dict[str, set[str]] = {}
    for c in pruned:
        if kind := verdict_kind(c.verdict):
            kinds.setdefault(c.method, set()).add(kind)
    if not pruned:
        return "Nothing was pruned in this sweep"
    if not kinds:
        randoms = sum(c.is_random for c in pruned)
        why = "this sweep has no random baseline" if not randoms else "random was not run at their budgets"
        return f"No method can be judged: {'only random was run' if randoms == len(pruned) else why}"
    n, better = len(kinds), [m for m, k in kinds.items() if "better" in k]
    if not better:
        worse = [m for m, k in kinds.items() if k == {"worse"}]
        only = words.short(next(iter(kinds)))
        if len(worse) == n:
            return f"{'Every method' if n > 1 else only} is worse than random pruning"
        return "No method is shown to beat random pruning" if n > 1 else f"{only} is not shown to beat random"
    everywhere = all(kinds[m] == {"better"} for m in better)
    many = len({c.keep for c in pruned if verdict_kind(c.verdict)}) > 1
    where = "" if not many else " at every budget" if everywhere else " at some budgets"
    if n == 1:
        return f"{words.short(better[0])} beats random pruning{where}"
    if len(better) == n:
        return f"{'Both' if n == 2 else f'All {n}'} methods beat random pruning{where}"
    return f"{len(better)} of {n} methods beat{'s' if len(better) == 1 else ''} random pruning{where}"


def beaten(cells: Sequence[CellSummary]) -> str:
    """Which methods beat random or lose to it, the clearest first; the budgets where it is not at all of them."""
    judged: dict[str, list[CellSummary]] = {}
    for c in cells:
        if verdict_kind(c.verdict) and c.against_random:
            judged.setdefault(c.method, []).append(c)
    kinds = {verdict_kind(c.verdict) for mine in judged.values() for c in mine}
    if len(judged) == 1 and len(kinds) == 1:  # the headline says it
        return ""
    parts = []
    for kind, words_of, sign in (("better", "Better than random", -1), ("worse", "Worse than random", 1)):
        named = []
        for method, mine in judged.items():
            won = [c for c in mine if verdict_kind(c.verdict) == kind]
            keeps = ", ".join(keep_text(c.keep) for c in won if c.keep is not None and len(won) < len(mine))
            if won:
                gain = sum(c.against_random.value for c in won if c.against_random) / len(won)
                named.append((sign * gain, words.short(method) + (f" ({keeps})" if keeps else "")))
        if named:
            parts.append(f"{words_of}: {words.listed([name for _, name in sorted(named)], 6)}.")
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


def spends(cell: CellSummary, cells: Sequence[CellSummary]) -> str:
    """What one of the `cells` of a sweep costs, in words."""
    parts, shown = [], flops_shown(cells)
    if (flops := flops_ratio(cell, shown)) is not None:
        parts.append(f"{words.ratio(flops)} of the {'language model’s ' if shown == LANGUAGE else ''}FLOPs")
    if cell.time is not None and times_shown(cells):
        what = "time" if cell.cost and cell.cost.images_per_second else "prefill time"
        parts.append(f"{words.ratio(cell.time.ratio)} of the measured {what}")
    if not parts and cell.tokens_total:
        parts.append(f"{100 * cell.tokens_per_layer / cell.tokens_total:.3g}% of the visual tokens per layer")
    return " and ".join(parts)


def lede(cells: Sequence[CellSummary], margin: float = MARGIN) -> str:
    """The cheapest setting that is safe, or that there is none."""
    found, close = cheapest(cells, margin), f"{100 * margin:g} points"
    gaps = [c for c in cells if c.difference is not None]
    if not gaps:
        return "There is no paired difference to the unpruned model yet."
    best = found or max(gaps, key=lambda c: c.difference.value if c.difference else 0.0)
    said = (
        f"The cheapest setting that stays within {close} of the unpruned model (95% confidence) is "
        if found
        else f"No setting is shown to stay within {close} of the unpruned model; the closest is "
    )
    ends = words.ends(best.difference, best.flips == 0)
    gap = f"{words.points(best.difference)} points {ends if ends[:1] in ('', '[') else f'({ends})'}"
    unseen = f", but {best.n} questions would not show a loss of {300 / best.n:.1f} points" if best.n else ""
    few = not found and best.difference is not None and best.difference.low >= -margin
    return f"{said}{words.short(best.label, 60)}: {gap} at {spends(best, cells)}{unseen if few else ''}."
