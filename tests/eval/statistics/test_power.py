"""Detectable differences and needed samples: by hand, against each other, and by simulating the test itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtc.eval.statistics.power import detectable_difference, discordant_rate, needed_sample
from vtc.eval.statistics.significance import mcnemar


def test_by_hand():
    # (1.95996 sqrt(0.1) + 0.84162 sqrt(0.1 - 0.0004))^2 / 0.0004 = 1959.9
    wanted = (1.959964 * 0.1**0.5 + 0.841621 * 0.0996**0.5) ** 2 / 0.0004
    assert needed_sample(0.10, 0.02) == int(np.ceil(wanted)) == 1960
    assert detectable_difference(0.10, 1960) == pytest.approx(0.02, abs=1e-5)
    # all differ one way: a rate of 5% for 5 points
    assert needed_sample(0.01, 0.05) == needed_sample(0.05, 0.05)


@given(st.floats(0.02, 1.0), st.floats(0.01, 0.5))
def test_each_is_the_others_inverse(rate: float, margin: float):
    n = needed_sample(rate, margin)
    if rate < margin or rate * n < 7:  # where either takes more discordant pairs than there are
        return
    assert detectable_difference(rate, n) <= margin + 1e-9
    assert detectable_difference(rate, n - 1) > margin - 1e-9


@given(st.floats(0, 1), st.integers(1, 10**6))
def test_more_questions_tell_more(rate: float, n: int):
    assert 0 < detectable_difference(rate, 4 * n) <= detectable_difference(rate, n) <= 1


def test_too_few_discordant_pairs_claim_nothing():
    # no pair differed: fewer than six can't be significant, so it is not "any difference would have shown"
    assert detectable_difference(0.0, 100) == detectable_difference(0.06, 100) > 0.06
    assert detectable_difference(0.3, 0) == 1.0


def test_the_rate_of_independent_pairs_is_their_discordant_share():
    gaps = [1, 0, 0, -1, 0, 1, 0, 0, 0, 0]
    assert discordant_rate(gaps, list(range(10))) == pytest.approx(0.3)
    graded = [0.3, 0, -0.6, 0]  # the mean square
    assert discordant_rate(graded, list(range(4))) == pytest.approx((0.09 + 0.36) / 4)


def test_shared_images_and_unequal_tasks_count():
    gaps, images = np.repeat([1, 0, -1, 0], 5), np.repeat(np.arange(4), 5).tolist()
    assert discordant_rate(gaps, images) == pytest.approx(5 * 0.5)  # five answers that flip together are one
    # 90 questions of one task and 10 of another weigh the same: the variances of two means, over four
    gaps, tasks = np.array([1, -1] * 50), ["a"] * 90 + ["b"] * 10
    assert discordant_rate(gaps, list(range(100)), tasks) == pytest.approx(100 * (1 / 90 + 1 / 10) / 4)


@pytest.mark.parametrize(("rate", "n"), [(0.10, 500), (0.3, 300)])
def test_the_power_is_what_is_said(rate: float, n: int):
    d = detectable_difference(rate, n)
    rng = np.random.default_rng(0)
    draws = rng.multinomial(n, [(rate + d) / 2, (rate - d) / 2, 1 - rate], size=1500)
    found = np.mean([mcnemar(int(up), int(down)) <= 0.05 for up, down, _ in draws])
    assert 0.72 <= found <= 0.84  # the exact test is a little conservative


def test_bad_margin():
    with pytest.raises(ValueError, match="margin must be in"):
        needed_sample(0.1, 2)
