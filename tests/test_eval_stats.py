"""Intervals: hand-worked cases, pairing by question, and coverage."""

from __future__ import annotations

import numpy as np
import pytest

from vtc.eval.stats import cluster_bootstrap, paired_difference


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


def test_same_seed_same_interval_and_the_order_of_questions_does_not_matter():
    rng = np.random.default_rng(0)
    values = dict(zip(map(str, range(60)), rng.random(60), strict=True))
    zero = dict.fromkeys(values, 0.0)
    image = {q: int(q) // 5 for q in values}
    task = dict.fromkeys(values, "t")
    once = paired_difference(values, zero, image, task, seed=3)
    again = paired_difference(dict(reversed(values.items())), zero, image, task, seed=3)
    assert once == again
    assert once != paired_difference(values, zero, image, task, seed=4)


def test_pairs_are_by_question_id():
    reference = {"q1": 1.0, "q2": 0.0, "q3": 1.0}
    treated = {"q3": 0.0, "q2": 1.0, "q9": 1.0}  # q1 is not there yet, q9 has no partner
    found = paired_difference(treated, reference, dict.fromkeys(("q1", "q2", "q3", "q9"), "i"), {"q2": "a", "q3": "b"})
    assert found.value == 0.0  # +1 on q2, -1 on q3
    with pytest.raises(ValueError, match="no question in common"):
        paired_difference({"a": 1.0}, {"b": 1.0}, {}, {})


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
