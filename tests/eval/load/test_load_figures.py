"""The limit, intervals, ratios, turns and words of a load test, on made-up requests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from vtc.eval.load.comparison import compare
from vtc.eval.load.figures import figures, geometric, paired_ratio, quantiles
from vtc.eval.load.options import LoadOptions
from vtc.eval.load.remarks import remarks
from vtc.eval.load.schedule import Block, schedule, still_to_do
from vtc.eval.load.speed_limit import Limit
from vtc.eval.load.targets import Target, parse_target

HERE = "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    ("v", "s", "f", "speed_up"),
    [
        (0.0, 0.0, 0.25, 4.0),
        (1.0, 0.0, 0.1, 1.0),
        (0.5, 0.0, 0.5, 4 / 3),
        (0.2, 0.1, 0.25, 2.0),
        (0.0, 0.5, 1.0, 2 / 3),
    ],
)
def test_the_limit(v: float, s: float, f: float, speed_up: float) -> None:
    assert Limit(v, s, f).speed_up == pytest.approx(speed_up)


def test_intervals_are_student_s_of_the_logarithms() -> None:
    values = [1.0, 1.2, 0.9, 1.1]
    found, logs = geometric(values), np.log(values)
    low, high = stats.t.interval(0.95, 3, loc=logs.mean(), scale=stats.sem(logs))
    assert found == pytest.approx((stats.gmean(values), math.exp(low), math.exp(high)))
    assert math.isnan(geometric([2.0]).low)
    assert geometric([2.0]).value == pytest.approx(2.0)


def test_ratios_are_of_the_same_rounds() -> None:
    """The machine slows down threefold, the ratio in each round stays 2; a round that one side lacks is left out."""
    found = paired_ratio({1: 6.0, 2: 4.0, 3: 2.0, 4: 99.0}, {1: 3.0, 2: 2.0, 3: 1.0})
    assert found == pytest.approx((2.0, 2.0, 2.0))
    assert math.isnan(paired_ratio({1: 0.0}, {1: 1.0}).value)


def test_the_intervals_of_ratios_cover_as_often_as_they_say() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        drift = rng.lognormal(0, 0.5, 5)
        ours, theirs = drift * 1.3 * rng.lognormal(0, 0.05, 5), drift * rng.lognormal(0, 0.05, 5)
        found = paired_ratio(dict(enumerate(ours)), dict(enumerate(theirs)))
        hits += found.low <= 1.3 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_quantiles_and_their_bootstrap() -> None:
    rng = np.random.default_rng(1)
    values = rng.exponential(size=400)
    half, most = quantiles([np.array([x]) for x in values], (0.5, 0.99), seed=0)
    assert half.value == pytest.approx(np.quantile(values, 0.5))
    assert most.value == pytest.approx(np.quantile(values, 0.99))
    draws = (values,)
    wanted = stats.bootstrap(draws, np.median, n_resamples=2000, method="percentile", random_state=0, vectorized=False)
    assert half.low == pytest.approx(wanted.confidence_interval.low, rel=0.05)
    assert half.high == pytest.approx(wanted.confidence_interval.high, rel=0.05)
    # whole requests are drawn: gaps of one request that are all alike say as much as one
    wide = quantiles([np.full(50, x) for x in values[:20]], (0.5, 0.99), seed=0)[0]
    narrow = quantiles([np.array([x]) for x in np.repeat(values[:20], 50)], (0.5, 0.99), seed=0)[0]
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def options(**more: Any) -> LoadOptions:
    targets = tuple(parse_target(f"{name} {HERE}") for name in "abc")
    return LoadOptions(targets=targets, concurrencies=(1, 4), rounds=6, **more)


def test_every_round_has_every_target_once_at_every_concurrency_next_to_each_other() -> None:
    blocks = schedule(options())
    assert len(blocks) == 7 * 2 * 3
    orders = set()
    for i in range(0, len(blocks), 3):
        three = blocks[i : i + 3]
        assert len({(b.round, b.concurrency) for b in three}) == 1
        assert sorted(b.target for b in three) == ["a", "b", "c"]
        orders.add(tuple(b.target for b in three))
    assert len(orders) > 3  # nobody always follows the same one
    assert blocks[0].round == 0
    assert schedule(options()) == blocks
    assert schedule(options(seed=1)) != blocks


def test_blocks_are_long_enough_for_their_concurrency() -> None:
    assert Block("a", 32, 1).count(16) == 128
    assert Block("a", 1, 1).count(16) == 16
    assert Block("a", 8, 0).count(16) == 8


def test_what_is_left_warms_up_again() -> None:
    blocks = schedule(options())
    done = {b.key for b in blocks if b.round and not (b.target == "b" and b.round == 6)}
    left = still_to_do(blocks, done)
    assert [(b.target, b.round) for b in left] == [("b", 0), ("b", 0), ("b", 6), ("b", 6)]
    assert still_to_do(blocks, {b.key for b in blocks}) == []


def made_up(rates: dict[str, float], **more: Any) -> tuple[list[Any], list[Any]]:
    """Blocks and requests of targets that answer `rates` requests a second, with a little noise of rounds."""
    blocks, requests = [], []
    rng = np.random.default_rng(2)
    for turn in range(4):
        drift = rng.uniform(0.8, 1.2)
        for name, rate in rates.items():
            seconds = 10 / (rate * drift * rng.uniform(0.99, 1.01))
            key = {"target": name, "concurrency": 1, "round": turn}
            blocks.append({**key, "seconds": seconds, "ok": 10, "sent": 10, "cut": False})
            row = {"ok": True, "error": "", "ttft": seconds / 10, "gaps": [0.01], "seconds": 0.1,
                   "prompt_tokens": 100, "completion_tokens": 2, **more.get(name, {})}  # fmt: skip
            requests += [{**key, **row} for _ in range(10)]
    return blocks, requests


def words(targets: list[Target], rates: dict[str, float], limits: dict[str, Limit] | None = None, **more: Any) -> str:
    found = figures(*made_up(rates, **more))
    compared = compare(targets, targets[0], found, limits or {})
    return "\n".join(remarks(targets, targets[0], found, compared, 1))


FULL = parse_target(f"full {HERE}")
HALF = parse_target(f"half {HERE} pruner=dart keep=64")
SMALL = parse_target(f"small {HERE} resize=0.5")
FEWER = {"prompt_tokens": 50}


def test_where_pruning_does_not_pay_it_says_so() -> None:
    assert "half at concurrency 1: 0.80x" in (said := words([FULL, HALF], {"full": 10, "half": 8}, half=FEWER))
    assert "the requests per second of full: pruning does not pay here" in said
    assert "the speed to the first token of full: pruning does not pay here" in said
    assert "making pictures smaller does not pay here" in words([FULL, SMALL], {"full": 10, "small": 8}, small=FEWER)
    assert "no difference is shown" in words([FULL, HALF], {"full": 10, "half": 10}, half=FEWER)
    assert words([FULL, HALF], {"full": 10, "half": 15}, half=FEWER) == ""


def test_the_control_of_smaller_pictures_is_compared() -> None:
    both = {"half": FEWER, "small": FEWER}
    slower = words([FULL, HALF, SMALL], {"full": 10, "half": 15, "small": 20}, **both)
    assert "half at concurrency 1 is slower than smaller pictures of as many tokens (small): 0.75x" in slower
    faster = words([FULL, HALF, SMALL], {"full": 10, "half": 20, "small": 15}, **both)
    assert "half at concurrency 1 is faster than smaller pictures" in faster
    other = words([FULL, HALF, SMALL], {"full": 10, "half": 15, "small": 20}, half=FEWER, small={"prompt_tokens": 80})
    assert "small has +60% prompt tokens of half" in other
    none = words([FULL, HALF, SMALL], {"full": 10, "half": 15, "small": 11}, half=FEWER)
    assert "small: smaller pictures have as many prompt tokens as full's" in none
    assert "another resize" not in none


def test_what_makes_figures_hard_to_compare_is_said() -> None:
    longer = words([FULL, HALF], {"full": 10, "half": 15}, half={**FEWER, "completion_tokens": 4})
    assert "its answers are +100% as long as full's" in longer
    assert "is pruning on?" in words([FULL, HALF], {"full": 10, "half": 15})
    assert "several tokens come at a time" in longer
    beyond = words([FULL, HALF], {"full": 10, "half": 15}, {"half": Limit(0.5, 0.0, 0.9)}, half=FEWER)
    assert "is beyond the limit of 1.05x" in beyond


def test_ratios_limits_and_warm_up() -> None:
    found = figures(*made_up({"full": 10, "half": 15}))
    assert found["full", 1].rounds == 3  # the fourth warmed up
    assert found["full", 1].sent == 30
    one = compare([FULL, HALF], FULL, found, {"half": Limit(0.0, 0.0, 0.5)})["half", 1]
    assert one.rate.low < 1.5 < one.rate.high
    assert one.ttft.value == pytest.approx(one.rate.value, rel=1e-6)
    assert one.attained(one.rate) == pytest.approx(one.rate.value / 2)
