"""The estimate of a sweep's time left, on a clock that only the test moves."""

from __future__ import annotations

import pytest

from vtc.eval.progress import Estimator

SECONDS = {"unpruned": 2.0, "half": 1.2, "few": 0.3, "slow": 5.0}
IMAGES, PER_CHUNK = 160, 8


class Clock:
    """Stands still."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def steps(rising: float = 0.0) -> list[tuple[str, float]]:
    """One answer after the other with its seconds, chunk by chunk as the runner goes; later ones may take longer."""
    found = []
    for chunk in range(IMAGES // PER_CHUNK):
        for cell, seconds in SECONDS.items():
            found += [(cell, seconds * (1 + rising * chunk * PER_CHUNK / IMAGES))] * PER_CHUNK
    return found


@pytest.mark.parametrize("rising", [0.0, 0.3])
@pytest.mark.parametrize("share", [0.1, 0.13, 0.3, 0.7])
def test_right_within_a_quarter_from_a_tenth_on(share: float, rising: float):
    clock, work = Clock(), steps(rising)
    estimator = Estimator(dict.fromkeys(SECONDS, IMAGES), clock)
    whole, spent = sum(s for _, s in work), 0.0
    for cell, seconds in work:
        if spent >= share * whole:
            break
        clock.now += seconds
        spent += seconds
        estimator.done(cell, 1)
    assert estimator.seconds_left() == pytest.approx(whole - spent, rel=0.25)
    before = estimator.seconds_left()
    clock.now += 0.1
    assert estimator.seconds_left() == pytest.approx(before - 0.1)


def test_answers_that_were_there_say_nothing_about_speed():
    clock = Clock()
    estimator = Estimator({"a": 100, "b": 100}, clock)
    assert estimator.seconds_left() is None
    estimator.found("a", 100)
    estimator.found("b", 50)
    assert estimator.seconds_left() is None
    clock.now += 3
    estimator.done("b", 1)
    assert estimator.seconds_left() == pytest.approx(3 * 49)


def test_a_cell_not_seen_yet_counts_as_the_others():
    clock = Clock()
    estimator = Estimator({"a": 10, "b": 10}, clock)
    clock.now += 2
    estimator.done("a", 10)
    assert estimator.seconds_left() == pytest.approx(10 * 0.2)


def test_a_machine_that_slows_down_is_noticed():
    clock, work = Clock(), steps()
    estimator = Estimator(dict.fromkeys(SECONDS, IMAGES), clock)
    half = len(work) // 2
    for i, (cell, seconds) in enumerate(work[: half + half // 2]):
        clock.now += seconds * (1 if i < half else 2)
        estimator.done(cell, 1)
    left = sum(seconds for _, seconds in work[half + half // 2 :])
    assert estimator.seconds_left() == pytest.approx(2 * left, rel=0.25)


def test_a_small_last_batch_is_no_sign_of_a_slow_machine():
    """Chunks of a batch of 16 and one of 2, which takes half as long."""
    clock, cells = Clock(), {"a": 1.0, "b": 3.0}
    estimator = Estimator(dict.fromkeys(cells, 18 * 20), clock)
    for _ in range(3):
        for cell, seconds in cells.items():
            for count, share in ((16, 1), (2, 0.5)):
                clock.now += seconds * share
                estimator.done(cell, count)
    assert estimator.seconds_left() == pytest.approx(17 * 1.5 * 4, rel=0.02)


def test_loading_counts_for_no_cell():
    """Of workers' first answers nobody knows how long they took."""
    clock = Clock()
    estimator = Estimator({"a": 100}, clock)
    clock.now += 60
    estimator.found("a", 10)
    assert estimator.seconds_left() is None
    clock.now += 5
    estimator.done("a", 10)
    assert estimator.seconds_left() == pytest.approx(40)
