"""The table of a load test: on the screen, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from vtc.eval.statistics.intervals import Interval

from .comparison import Comparison, Found
from .remarks import times
from .targets import Target

COLUMNS = (
    "target", "in flight", "req/s", "TTFT p50, ms", "p99", "between pieces p50, ms", "p99", "per token, ms",
    "prompt tokens", "answer", "failed", "req/s, ratio", "TTFT, ratio", "limit", "of limit",
)  # fmt: skip
TITLE = "Load test"


def rows(targets: Sequence[Target], found: Found, compared: Mapping[tuple[str, int], Comparison]) -> list[list[str]]:
    """Cells as texts: by concurrency, targets in their order."""
    made = []
    levels = sorted({concurrency for _, concurrency in found})
    for level in levels:
        for target in targets:
            mine = found.get((target.name, level))
            if mine is None:
                continue
            one = compared.get((target.name, level))
            limit = one.limit.speed_up if one and one.limit else None
            attained = one.attained(one.rate) if one else None
            made.append(
                [
                    target.name,
                    str(level),
                    _within(mine.rate, 1),
                    _within(mine.ttft_50, 1e3),
                    _within(mine.ttft_99, 1e3),
                    _within(mine.gap_50, 1e3),
                    _within(mine.gap_99, 1e3),
                    _plain(None if mine.per_token is None else 1e3 * mine.per_token),
                    _plain(mine.prompt_tokens),
                    _plain(mine.completion_tokens),
                    f"{mine.sent - mine.ok} of {mine.sent}",
                    times(one.rate) if one else "-",
                    times(one.ttft) if one else "-",
                    "-" if limit is None else f"{limit:.2f}x",
                    "-" if attained is None else f"{attained:.2f}",
                ]
            )
    return made


def screen_table(made: Sequence[Sequence[str]]) -> Table:
    """For the console."""
    table = Table(title=TITLE, title_justify="left")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in made:
        table.add_row(*row)
    return table


def markdown(made: Sequence[Sequence[str]], said: Sequence[str], notes: Sequence[str]) -> str:
    """``summary.md``."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in made]
    listed = [f"- {line}" for line in said]
    return "\n".join([f"# {TITLE}", "", *lines, "", *listed, *([""] if listed else []), *notes, ""])


def as_json(
    found: Found, compared: Mapping[tuple[str, int], Comparison], said: Sequence[str], about: Mapping[str, Any]
) -> dict[str, Any]:
    """``summary.json``: all figures, in seconds; what is not known is null."""
    listed = []
    for key, mine in found.items():
        one = compared.get(key)
        listed.append(
            {
                **dataclasses.asdict(mine),
                "rate_ratio": one.rate if one else None,
                "ttft_ratio": one.ttft if one else None,
                "limit": _limit(one),
                "rate_of_limit": one.attained(one.rate) if one else None,
                "ttft_of_limit": one.attained(one.ttft) if one else None,
            }
        )
    cleaned: dict[str, Any] = _finite({**about, "remarks": list(said), "figures": listed})
    return cleaned


def _limit(one: Comparison | None) -> dict[str, float] | None:
    if one is None or one.limit is None:
        return None
    return {**dataclasses.asdict(one.limit), "speed_up": one.limit.speed_up}


def _finite(value: Any) -> Any:
    if isinstance(value, Interval):
        return {end: _finite(x) for end, x in zip(value._fields, value, strict=True)}
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _within(value: Interval, scale: float) -> str:
    if math.isnan(value.value):
        return "-"
    ends = "" if math.isnan(value.low) else f" [{_plain(scale * value.low)}, {_plain(scale * value.high)}]"
    return _plain(scale * value.value) + ends
