"""McNemar's test and its form for seeds and shared images, Holm's correction: by hand, against scipy, and by level."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from vtc.eval.statistics.intervals import Interval
from vtc.eval.statistics.paired import flips, mcnemar_of
from vtc.eval.statistics.saddlepoint_tail import saddlepoint_tail
from vtc.eval.statistics.significance import exchange_test, holm, mcnemar, verdict

GRADES = {"exact": [0.0, 1.0], "vqa": [0.0, 0.3, 0.6, 0.9, 1.0], "anls": [0.0, 0.5, 0.62, 0.8, 1.0]}


def test_mcnemar_by_hand():
    # 1 of 8 discordant pairs one way: 2 * (1 + 8) / 2**8; unanimous five can't reach 0.05, six can
    assert mcnemar(1, 7) == pytest.approx(2 * 9 / 256)
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(6, 0) == pytest.approx(2 / 64)
    assert mcnemar(0, 0) == mcnemar(4, 4) == 1.0


def test_flips_of_right_wrong_and_graded_answers():
    base = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.6, "only": 1.0}
    now = {"a": 0.0, "b": 1.0, "c": 1.0, "d": 0.3}
    assert flips(now, base) == (2, 1)  # a and d fell, c rose
    assert mcnemar_of(now, base) == mcnemar(2, 1)  # the sign test, where a score is neither right nor wrong


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_one_reference_and_one_question_per_image_is_mcnemar(pairs: list[tuple[bool, bool]]):
    a, b = (np.array([pair[i] for pair in pairs], dtype=float) for i in (0, 1))
    p = exchange_test([a, b], list(range(len(pairs))))
    assert p == pytest.approx(mcnemar(int((a < b).sum()), int((a > b).sum())))


@given(st.data())
@settings(deadline=None)
def test_both_sides_give_the_same_p_value(data: st.DataObject):
    grades = GRADES[data.draw(st.sampled_from(sorted(GRADES)))]
    n = data.draw(st.integers(1, 12))
    a, b = (data.draw(st.lists(st.sampled_from(grades), min_size=n, max_size=n)) for _ in range(2))
    clusters = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    assert exchange_test([a, b], clusters) == pytest.approx(exchange_test([b, a], clusters))


@pytest.mark.parametrize("metric", sorted(GRADES))
def test_small_tables_agree_with_a_list_of_all_assignments(metric: str):
    rng = np.random.default_rng(2)
    for _ in range(20):
        runs = rng.choice(GRADES[metric], size=(3, 6))
        observed = runs[0].sum()
        sums = [sum(runs[r, i] for i, r in enumerate(places)) for places in product(range(3), repeat=6)]
        lower, upper = (np.mean([sign * s >= sign * observed - 1e-9 for s in sums]) for sign in (-1, 1))
        assert exchange_test(runs, list(range(6))) == pytest.approx(min(1, 2 * min(lower, upper)))


def test_agrees_with_scipys_permutation_test_on_shared_images_and_tasks():
    rng = np.random.default_rng(4)
    clusters, groups = np.repeat(np.arange(60), 4), np.tile(["a", "a", "a", "b"], 60)
    runs = rng.choice(GRADES["vqa"], size=(4, 240))
    runs[0, :30] = 1.0
    share = np.where(groups == "a", 1 / 180, 1 / 60)
    sums = [np.bincount(clusters, run * share) for run in runs]

    def gap(first: Any, *rest: Any, axis: int = -1) -> Any:
        return first.sum(axis=axis) - sum(r.sum(axis=axis) for r in rest) / 3

    wanted = scipy_stats.permutation_test(
        sums, gap, permutation_type="samples", n_resamples=9999, vectorized=True, batch=500, rng=rng
    )
    found = exchange_test(runs, clusters.tolist(), groups.tolist())
    assert 0.001 < wanted.pvalue < 0.5
    assert found == pytest.approx(wanted.pvalue, abs=4 * np.sqrt(wanted.pvalue / 2 / 9999) * 2)


@pytest.mark.parametrize(("n", "wins"), [(20, 18), (20, 20), (50, 40), (200, 140), (1000, 600)])
def test_the_far_tail_is_that_of_the_binomial(n: int, wins: int):
    gain = np.zeros((n, 2))
    gain[:wins, 1], gain[wins:, 1] = -1, 1
    wanted = scipy_stats.binom.sf(wins - 1, n, 0.5)
    assert wanted * 0.999 <= saddlepoint_tail(gain) <= wanted * 1.3


def test_the_far_tail_with_seeds_and_grades_agrees_with_many_draws():
    rng = np.random.default_rng(0)
    runs = rng.integers(0, 4, (4, 25)).astype(float)
    runs[0] += 0.7
    gain = np.round((runs - runs[0]).T, 9)
    changes = sum(gain[i, rng.integers(4, size=2_000_000)] for i in range(25))
    wanted = float((changes >= -1e-9).mean())
    assert 1e-5 < wanted < 1e-3
    assert saddlepoint_tail(gain) == pytest.approx(wanted, rel=0.25)
    # and no table is so long that Holm's correction could not pass
    right = np.stack([np.ones(60), *(rng.random((3, 60)) < 0.4)]).astype(float)
    assert 0 < exchange_test(right, list(range(60))) < 1e-8


def test_level_where_the_questions_of_an_image_go_wrong_together():
    # 40 images of 6 questions, method and three seeds alike: image by image 5% are rejected, McNemar on questions more
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(40), 6)
    rejected = naive = 0
    for trial in range(300):
        luck = rng.normal(size=(4, 40)) * 1.5
        right = (luck[:, clusters] + rng.normal(size=(4, 240)) > 0).astype(float)
        rejected += exchange_test(right, clusters.tolist(), draws=999, seed=trial) <= 0.05
        naive += mcnemar(int((right[0] < right[1]).sum()), int((right[0] > right[1]).sum())) <= 0.05
    assert 0.02 <= rejected / 300 <= 0.08
    assert naive / 300 > 0.15


def test_more_seeds_of_random_give_more_power():
    rng = np.random.default_rng(9)
    found = {1: 0, 5: 0}
    for trial in range(200):
        random = (rng.random((5, 150)) < 0.7).astype(float)
        method = (rng.random(150) < 0.81).astype(float)
        for seeds in found:
            runs = np.stack([method, *random[:seeds]])
            found[seeds] += exchange_test(runs, list(range(150)), draws=999, seed=trial) <= 0.05
    assert found[5] > found[1] + 15


def test_a_method_with_seeds_of_its_own():
    # all choices of two of an image's four runs, by hand
    runs = np.array([[1, 1, 0, 1], [1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=float)
    observed = runs[:2].sum()
    pairs = [(i, k) for i in range(4) for k in range(i)]
    sums = np.array([sum(runs[list(pair), i].sum() for i, pair in enumerate(way)) for way in product(pairs, repeat=4)])
    wanted = 2 * min((sums >= observed).mean(), (sums <= observed).mean())
    assert exchange_test(runs, list(range(4)), treated=2) == pytest.approx(wanted)
    # its mean over three seeds is nearer to the truth than one of them
    rng = np.random.default_rng(3)
    many = (rng.random((6, 200)) < np.array([0.8] * 3 + [0.7] * 3)[:, None]).astype(float)
    ids = list(range(200))
    assert exchange_test(many, ids, treated=3) < exchange_test(many[[0, 3, 4, 5]], ids)


def test_holm_by_hand():
    # 4 * 0.005, then 3 * 0.01, 2 * 0.03, and 0.04 may not be below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.7, 0.6]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(p_values: list[float]):
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q + 1e-12
        assert q <= min(1, len(p_values) * p) + 1e-12 or q in adjusted  # raised to the one before it
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert all(adjusted[a] <= adjusted[b] for a, b in pairwise(order))
    if p_values:
        assert min(adjusted) == pytest.approx(min(1, len(p_values) * min(p_values)))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 1))
def test_one_more_test_makes_no_p_value_smaller(p_values: list[float], more: float):
    assert all(a <= b + 1e-12 for a, b in zip(holm(p_values), holm([*p_values, more]), strict=False))


@pytest.mark.parametrize(
    ("interval", "p", "p_holm", "detectable", "words"),
    [
        ((0.03, 0.01, 0.05), 0.001, 0.01, 0.03, "better than random"),
        ((-0.03, -0.05, -0.01), 0.001, 0.01, 0.03, "worse than random"),
        ((0.03, 0.01, 0.05), 0.01, 0.2, 0.03, "no evidence after correction"),
        ((0.03, -0.001, 0.06), 0.001, 0.01, 0.03, "no evidence, needs n >= 900 for 2 points"),  # the luck of the seeds
        ((0.001, -0.01, 0.01), 0.8, 1.0, 0.015, "no evidence"),
        ((0.01, -0.02, 0.04), 0.5, 1.0, 0.04, "no evidence, needs n >= 900 for 2 points"),
    ],
)
def test_verdicts(interval: tuple[float, ...], p: float, p_holm: float, detectable: float, words: str):
    assert verdict(Interval(*interval), p, p_holm, detectable, 900) == words


def test_bad_arguments():
    with pytest.raises(ValueError, match="more than 1"):
        exchange_test([[1.0, 0.0]], ["a", "b"])
    with pytest.raises(ValueError, match="more than 1, 3"):
        exchange_test([[1.0], [0.0]], ["a", "b", "c"])
