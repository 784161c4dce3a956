"""From requests to figures: throughput, times to the first token and between tokens, ratios of the same rounds."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vtc.eval.statistics.intervals import Floats, Interval, percentile

from .schedule import WARM_UP

REPS = 500
NONE = Interval(math.nan, math.nan, math.nan)
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Figures:
    """One target at one concurrency; seconds.

    Attributes
    ----------
    rounds, sent, ok : int
        Finished blocks, and their requests.
    errors : mapping
        Kinds of what went wrong, and how often.
    examples : mapping
        The first words of each kind.
    rate : Interval
        Requests per second.
    ttft_50, ttft_99, gap_50, gap_99 : Interval
        To the first token, and between pieces of the answer.
    per_token : float, optional
        Median over requests of the time per token behind the first.
    prompt_tokens, completion_tokens : float, optional
        Mean of a request, dropped visual tokens left out.
    tokens_per_piece : float, optional
        Tokens that came together.
    cut : int
        Blocks that time cut short.
    """

    target: str
    concurrency: int
    rounds: int
    sent: int
    ok: int
    errors: Mapping[str, int]
    examples: Mapping[str, str]
    rate: Interval
    ttft_50: Interval
    ttft_99: Interval
    gap_50: Interval
    gap_99: Interval
    per_token: float | None
    prompt_tokens: float | None
    completion_tokens: float | None
    tokens_per_piece: float | None
    cut: int
    rates: Mapping[int, float] = field(repr=False)  # by round
    ttfts: Mapping[int, float] = field(repr=False)  # medians by round


def figures(blocks: Rows, requests: Iterable[Mapping[str, Any]], seed: int = 0) -> dict[tuple[str, int], Figures]:
    """Figures by target and concurrency, of the rounds that count."""
    of_block: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    of_request: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in blocks:
        if row["round"] != WARM_UP:
            of_block.setdefault((row["target"], row["concurrency"]), []).append(row)
    for row in requests:
        if row["round"] != WARM_UP:
            of_request.setdefault((row["target"], row["concurrency"]), []).append(row)
    return {key: _of(*key, mine, of_request.get(key, []), seed) for key, mine in of_block.items()}


def _of(target: str, concurrency: int, blocks: Rows, requests: Rows, seed: int) -> Figures:
    good = [row for row in requests if row["ok"]]
    bad = [row["error"] for row in requests if not row["ok"]]
    kinds = [error.partition(":")[0] for error in bad]
    rates = {row["round"]: row["ok"] / row["seconds"] for row in blocks}
    by_round: dict[int, list[float]] = {}
    for row in good:
        by_round.setdefault(row["round"], []).append(row["ttft"])
    ttfts = [np.array([row["ttft"]]) for row in good]
    gaps = [np.array(row["gaps"]) for row in good if row["gaps"]]
    pieces = sum(1 + len(row["gaps"]) for row in good if row["completion_tokens"])
    tokens = sum(row["completion_tokens"] or 0 for row in good)
    ttft = quantiles(ttfts, (0.5, 0.99), seed)
    gap = quantiles(gaps, (0.5, 0.99), seed)
    return Figures(
        target,
        concurrency,
        len(blocks),
        len(requests),
        len(good),
        dict(Counter(kinds)),
        dict(zip(reversed(kinds), reversed(bad), strict=True)),
        geometric(list(rates.values())),
        *ttft,
        *gap,
        _median(_per_token(row) for row in good),
        _mean(row["prompt_tokens"] for row in good),
        _mean(row["completion_tokens"] for row in good),
        tokens / pieces if pieces else None,
        sum(row["cut"] for row in blocks),
        rates,
        {turn: statistics.median(values) for turn, values in by_round.items()},
    )


def geometric(values: Sequence[float], level: float = 0.95) -> Interval:
    """Geometric mean with Student's interval of the logarithms; no ends with fewer than two values."""
    from scipy.stats import t

    if not values or min(values) <= 0:
        return Interval(0.0, math.nan, math.nan) if values and max(values) == 0 else NONE
    logs, n = np.log(values), len(values)
    middle = float(logs.mean())
    if n < 2:
        return Interval(math.exp(middle), math.nan, math.nan)
    half = float(t.ppf((1 + level) / 2, n - 1) * logs.std(ddof=1) / math.sqrt(n))
    return Interval(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def paired_ratio(treated: Mapping[int, float], reference: Mapping[int, float]) -> Interval:
    """Ratio over the rounds that both have, each round a pair."""
    common = [turn for turn in sorted(treated) if turn in reference]
    if any(treated[turn] <= 0 or reference[turn] <= 0 for turn in common):
        return NONE
    return geometric([treated[turn] / reference[turn] for turn in common])


def quantiles(parts: Sequence[Floats], levels: tuple[float, float], seed: int) -> tuple[Interval, Interval]:
    """Two quantiles of all values of `parts` with bootstrap intervals; whole parts (requests) are drawn."""
    if not parts:
        return NONE, NONE
    rng, n = np.random.default_rng(seed), len(parts)
    values = np.concatenate(parts)
    owner = np.repeat(np.arange(n), [len(part) for part in parts])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    found = np.empty((REPS, 2))
    for i in range(REPS):
        weight = np.bincount(rng.integers(0, n, n), minlength=n)[owner].cumsum()
        found[i] = [values[np.searchsorted(weight, level * weight[-1])] for level in levels]
    first, second = (percentile(float(np.quantile(values, level)), found[:, i]) for i, level in enumerate(levels))
    return first, second


def _per_token(row: Mapping[str, Any]) -> float | None:
    behind = (row["completion_tokens"] or 0) - 1
    return sum(row["gaps"]) / behind if behind > 0 and row["gaps"] else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
