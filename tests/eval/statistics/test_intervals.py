"""Intervals: hand-worked cases, pairing by question, and coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from vtc.eval.statistics.intervals import Resamples, cluster_bootstrap
from vtc.eval.statistics.paired import Questions
from vtc.eval.statistics.ranking import rank_intervals


def test_two_clusters_by_hand():
    # resamples of {A, B}: AA with mean 0, BB with mean 1, AB with mean 1/2, in proportion 1:1:2
    found = cluster_bootstrap([0, 0, 1, 1], ["A", "A", "B", "B"], level=0.4, reps=4000)
    assert found == (0.5, 0.5, 0.5)
    wide = cluster_bootstrap([0, 0, 1, 1], ["A", "A", "B", "B"], level=0.9, reps=4000)
    assert wide == (0.5, 0.0, 1.0)


def test_whole_clusters_are_drawn():
    # within a cluster the values cancel, so no resample of clusters can move the mean
    found = cluster_bootstrap([1, -1] * 50, np.repeat(np.arange(50), 2).tolist())
    assert found == (0.0, 0.0, 0.0)
    alone = cluster_bootstrap([1, -1] * 50, list(range(100)))
    assert alone.low < -0.1 < 0.1 < alone.high


def test_groups_weigh_the_same():
    found = cluster_bootstrap([1, 1, 1, 0], ["a", "b", "c", "d"], ["x", "x", "x", "y"])
    assert found.value == 0.5


def test_group_that_a_resample_misses_is_left_out():
    found = cluster_bootstrap([1, 0], ["a", "b"], ["x", "y"], reps=500)
    assert (found.low, found.high) == (0.0, 1.0)


def test_same_seed_same_interval():
    values = np.random.default_rng(0).random(60)
    image = [i // 5 for i in range(60)]
    once = cluster_bootstrap(values, image, seed=3)
    assert once == cluster_bootstrap(values, image, seed=3)
    assert once != cluster_bootstrap(values, image, seed=4)


def test_coverage_of_the_clustered_interval():
    # 40 images of 5 questions whose scores share the image's luck: the interval over images must cover about 95%,
    # and one that takes the questions for independent must not
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(40), 5)
    hits, naive = 0, 0
    for trial in range(200):
        values = np.repeat(rng.normal(size=40), 5) + 0.3 * rng.normal(size=200)
        found = cluster_bootstrap(values, clusters.tolist(), reps=400, seed=trial)
        hits += found.low <= 0 <= found.high
        found = cluster_bootstrap(values, list(range(200)), reps=400, seed=trial)
        naive += found.low <= 0 <= found.high
    assert 0.90 <= hits / 200 <= 0.99
    assert naive / 200 < 0.75


def test_bad_arguments():
    with pytest.raises(ValueError, match="equally long"):
        cluster_bootstrap([1, 2], ["a"])
    with pytest.raises(ValueError, match="level"):
        cluster_bootstrap([1], ["a"], level=95)
    assert np.isnan(cluster_bootstrap([], []).value)


GRADES = st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0])


@given(st.lists(st.tuples(GRADES, GRADES, st.integers(0, 5), st.sampled_from("xy")), min_size=1, max_size=40))
@settings(deadline=None)
def test_differences_are_antisymmetric(rows: list[tuple[float, float, int, str]]):
    a, b, image, task = map(list, zip(*rows, strict=True))
    gaps = np.array(a) - np.array(b)
    one, other = (cluster_bootstrap(x, image, task, reps=100) for x in (gaps, -gaps))
    assert one == pytest.approx((-other.value, -other.high, -other.low))
    assert cluster_bootstrap(0 * gaps, image, task, reps=100) == (0, 0, 0)


def test_scipys_bootstrap_of_image_sums_gives_the_same_interval():
    rng = np.random.default_rng(5)
    clusters = rng.integers(0, 80, 400).tolist()
    groups = rng.choice(["vqa", "anls", "pope"], p=[0.6, 0.3, 0.1], size=400).tolist()
    values = rng.choice([-1.0, -0.3, 0.0, 0.0, 0.6, 1.0], size=400) + np.array([0.02 * (c % 5) for c in clusters])
    place = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((6, len(place)))
    for value, cluster, group in zip(values, clusters, groups, strict=True):
        k = ["vqa", "anls", "pope"].index(group)
        sums[k, place[cluster]] += value
        sums[3 + k, place[cluster]] += 1

    def mean(*parts: Any, axis: int = -1) -> Any:
        return sum(parts[k].sum(axis=axis) / parts[3 + k].sum(axis=axis) for k in range(3)) / 3

    wanted = scipy_stats.bootstrap(
        sums, mean, paired=True, vectorized=True, method="percentile", n_resamples=20000, batch=1000, rng=rng
    ).confidence_interval
    found = cluster_bootstrap(values, clusters, groups, reps=20000)
    assert found.value == pytest.approx(mean(*sums))
    width = wanted.high - wanted.low
    assert abs(found.low - wanted.low) < 0.03 * width
    assert abs(found.high - wanted.high) < 0.03 * width


@pytest.mark.parametrize("graded", [False, True])
def test_pairing_beats_comparing_two_means(graded: bool):
    # the same questions are hard for both: the interval of the difference is narrower than that of two samples
    rng = np.random.default_rng(6)
    hard = rng.random(300)
    grade = (lambda x: np.round(x, 1)) if graded else np.round
    a, b = (grade(np.clip(1.3 - hard + 0.1 * rng.normal(size=300), 0, 1)) for _ in range(2))
    ids = list(range(300))
    paired = cluster_bootstrap(a - b, ids)
    alone = [cluster_bootstrap(x, ids, seed=i) for i, x in enumerate((a, b))]
    apart = np.hypot(*(x.high - x.low for x in alone))
    assert paired.high - paired.low < 0.7 * apart


def test_one_draw_serves_all_scores():
    clusters, groups = np.repeat(np.arange(30), 3).tolist(), ["a", "b", "b"] * 30
    x, y = np.random.default_rng(3).random((2, 90))
    drawn = Resamples(clusters, groups, reps=200)
    assert np.allclose(drawn.means(x) - drawn.means(y), drawn.means(x - y))
    assert drawn.interval(x) == cluster_bootstrap(x, clusters, groups, reps=200)


def test_the_luck_of_the_seeds_is_in_the_interval():
    # three seeds keep other patches, the same in all images: the method is like any seed, and 95% must cover that
    rng = np.random.default_rng(8)
    hits = ignoring = 0
    image = {f"q{i:03}": i for i in range(200)}
    for trial in range(150):
        luck = 0.70 + 0.05 * rng.normal(size=4)
        runs = [dict(zip(image, (rng.random(200) < p).astype(float), strict=True)) for p in luck]
        questions = Questions(image, dict.fromkeys(image, "t"), reps=300, seed=trial)
        truth = luck[0] - 0.70
        found = questions.compare(runs[:1], runs[1:]).difference
        hits += found.low <= truth <= found.high
        pooled = {q: float(np.mean([run[q] for run in runs[1:]])) for q in image}
        found = questions.interval(runs[0], pooled)
        ignoring += found.low <= truth <= found.high
    assert hits / 150 >= 0.90
    assert ignoring / 150 < 0.86


def test_ranks_by_hand():
    # resamples in which b is best in three quarters, and c always last but for a tie
    means = {
        "a": (0.7, np.array([0.7, 0.7, 0.7, 0.9])),
        "b": (0.8, np.array([0.8, 0.8, 0.8, 0.8])),
        "c": (0.6, np.array([0.6, 0.7, 0.6, 0.6])),
    }
    found = rank_intervals(means, level=0.5)
    assert [found[m].value for m in "abc"] == [2, 1, 3]
    assert found["b"] == (1, 1, 1)  # ranks 1, 1, 1, 2
    assert found["a"] == (2, 1, 2)  # ranks 2, 2.5, 2, 1
    assert found["c"] == (3, 2.5, 3)  # ranks 3, 2.5, 3, 3
    assert rank_intervals({}) == {}


def test_ranks_of_methods_that_are_alike_are_uncertain():
    rng = np.random.default_rng(0)
    drawn = Resamples(list(range(400)), reps=500)
    a = (rng.random(400) < 0.8).astype(float)
    b = a.copy()
    b[np.flatnonzero(a == 1)[:20]], b[np.flatnonzero(a == 0)[:19]] = 0.0, 1.0
    scores = {"a": a, "b": b, "c": (rng.random(400) < 0.3).astype(float)}
    found = rank_intervals({name: (drawn.value(x), drawn.means(x)) for name, x in scores.items()})
    assert (found["a"].value, found["b"].value) == (1, 2)
    assert (found["a"].low, found["a"].high) == (found["b"].low, found["b"].high) == (1, 2)
    assert found["c"] == (3, 3, 3)
