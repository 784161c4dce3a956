"""Numbers as people read them."""

from __future__ import annotations

import math

from vtc.eval.cost.prefill_cost import Spread
from vtc.eval.statistics.intervals import Interval

NONE = "–"


def signed(value: float, digits: int = 1) -> str:
    """Points with a sign: ``+1.2``, ``−0.4``."""
    text = f"{value:+.{digits}f}"
    if float(text) == 0:
        return f"{0:.{digits}f}"
    return text.replace("-", "−")


def percent(value: float | None) -> str:
    """A share as percent without the sign of it: ``92.6``."""
    return NONE if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def points(interval: Interval | None) -> str:
    """A difference in points: ``+1.2``."""
    return NONE if interval is None else signed(100 * interval.value)


def ends(interval: Interval | None, same: bool = False, sign: bool = True) -> str:
    """The ends of an interval in percent or points: ``[−0.3, +2.7]``; in words where it has no width.

    Parameters
    ----------
    interval : Interval, optional
        A mean or a difference, bootstrapped over images.
    same : bool
        Of a difference: whether it is known that no question's score changed. Without, gains and losses on an image
        may have made up for each other.
    sign : bool
        Whether it is a difference.
    """
    if interval is None or not all(map(math.isfinite, interval)):
        return ""
    if math.isclose(interval.low, interval.high, rel_tol=0, abs_tol=1e-9):  # every drawing of images gave the same
        value = round(interval.value, 9)
        if not sign and value in (0, 1):
            return "all are right" if value else "none is right"
        if not sign or value:
            return "the same on every image"
        return "no question differed" if same else "no image differed"
    low, high = 100 * interval.low, 100 * interval.high
    digits = 1
    while digits < 4 and all(round(end, digits) == 0 for end in (low, high)):  # narrow, but not nothing
        digits += 1
    if sign:
        return f"[{signed(low, digits)}, {signed(high, digits)}]"
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def p_value(p: float | None) -> str:
    """A p-value: ``<0.001``, ``0.012``, ``0.43``."""
    if p is None:
        return NONE
    if p < 0.001:
        return "<0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def ratio(value: float | None) -> str:
    """A ratio to the unpruned model: ``0.42``."""
    return NONE if value is None else f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"


def count(value: float) -> str:
    """A count, or a mean of counts: ``144``, ``63.5``, ``14,815``."""
    return f"{value:,.0f}" if float(value).is_integer() or value >= 1000 else f"{value:.1f}"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, three digits: ``0.42``, ``12.3``, ``1,204``."""
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(seconds: Spread) -> str:
    """The range of several readings: ``[11.9–14.0]``."""
    return f"[{milliseconds(seconds.low)}–{milliseconds(seconds.high)}]"


def flops(number: float) -> str:
    """FLOPs with three digits: ``48.8 k``, ``3.14 G``, ``8.71 T``."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * factor:
            return f"{number / factor:#.3g} {prefix}".replace(". ", " ")
    return f"{number:.0f}"


def place(interval: Interval | None) -> str:
    """A rank: ``2``."""
    return NONE if interval is None else f"{interval.value:g}"


def places(interval: Interval | None) -> str:
    """The range of a rank, where there is one: ``[1–4]``."""
    if interval is None or interval.low == interval.value == interval.high:
        return ""
    return f"[{interval.low:g}–{interval.high:g}]"


def rank(interval: Interval | None) -> str:
    """A rank and its range: ``1``, ``2 [1–4]``."""
    return f"{place(interval)} {places(interval)}".strip()


def short(name: str, most: int = 34) -> str:
    """A name for running text: of a long one the beginning."""
    return name if len(name) <= most else name[: most - 1].rstrip(" ,(+=") + "…"


def listed(names: list[str], most: int = 4) -> str:
    """``a, b and c``; of many the first and how many more."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
