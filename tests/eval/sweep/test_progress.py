"""The estimate of a sweep's time left, on a clock that only the test moves."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_clock import TIMING, Clock, Load, World, errors, run

from vtc.eval.terminal.progress_bars_and_eta import Estimator, Visits

SECONDS = {"unpruned": 2.0, "half": 1.2, "few": 0.3, "slow": 5.0}
IMAGES, PER_CHUNK = 160, 8


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


def made_up(seed: int, processes: int) -> World:
    """Cells of a sweep whose timing is a fifth to a half of all."""
    generator = np.random.default_rng(seed)
    speeds = {f"cell{i}": float(np.exp(generator.normal(-3, 0.5))) for i in range(12)}
    timing = {cell: float(generator.uniform(0.8, 1.6)) for cell in speeds}
    return World(speeds, [16 + 2] * 15, timing, processes=processes)


# levels of other load, and how long one lasts in seconds, of runs of some minutes
LOADS = {"alone": ((1.0,), 1e9), "loaded": ((2.5,), 1e9), "busy": ((1.0, 1.5, 2.0, 3.0), 0.5)}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("processes", [1, 2])
def test_right_within_a_quarter_with_the_timing_that_follows(processes: int, load: str):
    """At a tenth, half and nine tenths of the whole run, by one process or two, on a busy machine too."""
    found = []
    for seed in range(15):
        world = made_up(seed, processes)
        seen = run(world, Load(np.random.default_rng(seed), *LOADS[load]), seed)
        found.append(list(errors(seen, 100.0, seen[-1][0]).values()))
        assert seen[-1][1] == pytest.approx(0, abs=1e-6)
    within = (np.abs(found) < 0.25).mean(0)
    # what other load will come nobody knows: of the busy runs some have to miss
    assert (within >= (0.8 if load == "busy" else 1.0)).all(), within
    assert (np.abs(np.median(found, 0)) < 0.12).all()


def test_without_the_timing_it_would_not_be():
    """The simulation can tell: an estimator that does not know of the timing is far off at a tenth."""
    world = made_up(0, 1)
    seen = run(world, Load(np.random.default_rng(0), *LOADS["alone"]), 0)
    steps = len(world.timing) * world.turns
    turns = steps * float(np.mean(list(world.timing.values())))
    assert turns > 0.25 * 0.9 * (seen[-1][0] - 100)  # what it would miss there


def test_a_trial_counts_until_a_step_was_seen():
    clock = Clock()
    estimator = Estimator({"a": 10, TIMING: 4}, clock, alone=[TIMING])
    estimator.expect(TIMING, 5.0)
    assert estimator.seconds_left() is None, "of the answers nothing is known"
    clock.now += 2
    estimator.done("a", 2)
    assert estimator.seconds_left() == pytest.approx(8 * 1 + 4 * 5)
    estimator.found("a", 8)
    estimator.skip()
    clock.now += 3
    estimator.done(TIMING, 1)
    assert estimator.seconds_left() == pytest.approx(3 * 3)


def test_a_step_that_was_not_tried_counts_as_so_many_answers():
    clock = Clock()
    estimator = Estimator({"a": 10, TIMING: 2}, clock, alone=[TIMING], sizes={TIMING: 8})
    clock.now += 1
    estimator.done("a", 1)
    assert estimator.seconds_left() == pytest.approx(9 + 2 * 8)


def test_processes_share_the_answers_but_not_the_timing():
    clock = Clock()
    estimator = Estimator({"a": 100, TIMING: 3}, clock, processes=2, alone=[TIMING])
    estimator.expect(TIMING, 4.0)
    estimator.found("a", 20)
    estimator.took("a", 10, 5.0)
    estimator.took("a", 10, 5.0)
    assert estimator.seconds_left() == pytest.approx(80 * 0.5 / 2 + 3 * 4)


def test_a_visit_ends_with_another_cell():
    clock, told = Clock(), []
    visits = Visits(lambda *visit: told.append(visit), clock)
    for cell, seconds, count in (("a", 1.0, 16), ("a", 0.5, 2), ("b", 3.0, 16)):
        clock.now += seconds
        visits.done(cell, count)
    assert told == [("a", 18, pytest.approx(1.5))]
    visits.close()
    visits.close()
    assert told[1:] == [("b", 16, pytest.approx(3.0))]
