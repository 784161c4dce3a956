"""What became slower since an older run, beyond noise.

Of the unpruned model times are compared as they are, of a method they are compared over the unpruned model's of the
same run: what makes the whole machine slower is then no news about the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vtc.eval.statistics.intervals import Floats, Interval, percentile
from vtc.eval.vlm.pruning_settings import UNPRUNED

from .figures import REPS

TOLERANCE = 0.05  # from run to run, beside what the rounds of a run show
LEAST_SHARE = 0.005  # of the unpruned prefill: choosing that took less more is no regression
TIMES = {"prefill": "prefill", "tower": "tower", "selection": "selection", "decode": "decode"}
BYTES = {"kv_bytes": ("KV cache", 0.001), "peak_memory": ("peak of memory", 0.1)}
SLOWER, FASTER, SAME = "slower", "faster", "no difference beyond noise"


@dataclass(frozen=True)
class Change:
    """One figure of a row, now over then.

    Attributes
    ----------
    spec, what : str
        The setting, and the figure.
    ratio : Interval
        Above 1 is slower, or more.
    verdict : str
        Slower, faster, or no difference beyond noise; more and less of bytes.
    regression : bool
        Whether it is to be flagged.
    """

    spec: str
    what: str
    ratio: Interval
    verdict: str
    regression: bool


def compare_runs(old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float = TOLERANCE) -> list[Change]:
    """All figures of all settings that both runs have.

    Parameters
    ----------
    old, new : mapping
        Contents of two files, of the same model, settings and machine (``refuse_other``).
    tolerance : float
        A time is flagged where the low end of its ratio is above 1 by more than this.
    """
    before, now = ({row["spec"]: row for row in run["rows"]} for run in (old, new))
    rng = np.random.default_rng(0)
    found = []
    for spec in now:
        if spec in before:
            found += _times(spec, before, now, tolerance, rng)
            found += [_bytes(spec, name, before[spec][name], now[spec][name]) for name in BYTES]
    return found


def not_compared(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Settings that only one of the runs has."""
    before, now = ([row["spec"] for row in run["rows"]] for run in (old, new))
    return [spec for spec in dict.fromkeys([*before, *now]) if (spec in before) != (spec in now)]


def _times(
    spec: str, before: Mapping[str, Any], now: Mapping[str, Any], tolerance: float, rng: np.random.Generator
) -> list[Change]:
    found = []
    for part, words in TIMES.items():
        sides, heads = [], []
        for run in (before, now):
            mine, plain = run[spec]["rounds"].get(part), run[UNPRUNED.spec]["rounds"]
            if not mine:
                break
            base = None if spec == UNPRUNED.spec else plain["prefill" if part == "selection" else part]
            draws = rng.integers(0, len(mine), (REPS, len(mine)))
            sides.append(_medians(mine, draws) / (1.0 if base is None else _medians(base, draws)))
            heads.append(float(np.median(mine)) / (1.0 if base is None else float(np.median(base))))
        if len(sides) < 2 or min(heads) <= 0:
            continue
        ratio = percentile(heads[1] / heads[0], sides[1] / np.maximum(sides[0], 1e-300))
        small = part == "selection" and heads[1] - heads[0] < LEAST_SHARE
        slower = ratio.low > 1 + tolerance and not small
        verdict = SLOWER if slower else FASTER if ratio.high < 1 / (1 + tolerance) else SAME
        found.append(Change(spec, words, ratio, verdict, slower))
    return found


def _medians(values: Sequence[float], draws: np.ndarray[Any, Any]) -> Floats:
    return np.median(np.asarray(values, dtype=float)[draws], axis=1)


def _bytes(spec: str, name: str, old: int, new: int) -> Change:
    words, tolerance = BYTES[name]
    ratio = new / old if old else 1.0
    more = ratio > 1 + tolerance
    verdict = "more" if more else "less" if ratio < 1 / (1 + tolerance) else SAME
    return Change(spec, words, Interval(ratio, ratio, ratio), verdict, more)
