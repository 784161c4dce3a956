"""The parts of ``vtc tune``: how questions are divided, and who goes on."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_up_tuning import World, questions_about, tune

from vtc.eval.tasks.questions import Question
from vtc.eval.tune.confirm import needed_images
from vtc.eval.tune.split_questions import divide, rungs_of, units_of
from vtc.eval.tune.successive_halving import BELOW, FINALISTS, ON, OUTBID, SAVES_NOTHING, best_set

SETS = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from("abc"), st.booleans()), min_size=2, max_size=60
).map(
    lambda drawn: [
        Question(f"q{i}", task, f"i{image}", "?", "yes", media=(f"i{image}", *(["shared"] * shared)))
        for i, (image, task, shared) in enumerate(drawn)
    ]
)  # fmt: skip


@given(SETS, st.floats(0.05, 0.95), st.integers(0, 5))
@settings(deadline=None)
def test_parts_share_no_image_and_have_every_task(questions, share, seed):
    try:
        parts = divide(questions, share, seed)
    except ValueError:  # tasks may share their images so that there is no such division
        assume(False)
    assert Counter(q.question_id for part in parts for q in part) == Counter(q.question_id for q in questions)
    images = [{m for q in part for m in (q.image_id, *q.media)} for part in parts]
    assert not images[0] & images[1]
    assert all({q.task for q in part} == {q.task for q in questions} for part in parts)
    assert divide(questions, share, seed) == parts


@given(st.integers(2, 40), st.integers(2, 40), st.floats(0.1, 0.9), st.integers(0, 99))
@settings(deadline=None)
def test_two_images_per_task_are_enough(first, second, share, seed):
    questions = [Question(f"a{i}", "a", f"a{i}", "?", "yes") for i in range(first)]
    questions += [Question(f"b{i}", "b", f"b{i}", "?", "yes") for i in range(second)]
    _, part = divide(questions, share, seed)
    for task, n in (("a", first), ("b", second)):
        got = sum(q.task == task for q in part)
        assert 1 <= got <= n - 1
        assert abs(got - share * n) <= 1


def test_another_seed_is_another_split():
    questions = questions_about(40, 3)
    assert {q.image_id for q in divide(questions, 0.5, 0)[1]} != {q.image_id for q in divide(questions, 0.5, 1)[1]}


def test_questions_of_a_group_stay_together():
    questions = [Question(f"q{i}", "a", f"i{i}", "?", "yes", group=f"g{i // 2}") for i in range(8)]
    assert [len(unit) for unit in units_of(questions)] == [2, 2, 2, 2]


def test_a_task_about_one_image_is_named():
    questions = [*questions_about(5, 1, ("a",)), Question("x", "lonely", "one", "?", "yes")]
    with pytest.raises(ValueError, match="task 'lonely' is about 1 image that"):
        divide(questions, 0.5)


@given(st.integers(20, 120), st.integers(1, 6), st.integers(1, 80), st.floats(1.5, 4))
@settings(deadline=None, max_examples=40)
def test_rungs_are_nested_and_end_with_everything(images, each, candidates, eta):
    questions = questions_about(images, each)
    rungs = rungs_of(questions, candidates, FINALISTS, eta, 0.9)
    ids = [{q.question_id for q in rung} for rung in rungs]
    assert ids[-1] == {q.question_id for q in questions}
    assert all(small < large for small, large in pairwise(ids))
    assert all({q.task for q in rung} == {"a", "b"} for rung in rungs if each > 1)


@given(st.integers(1, 8), st.integers(1, 9), st.integers(0, 1000))
def test_the_best_set_starts_with_the_safest_and_has_nobody_twice(n, size, seed):
    rng = np.random.default_rng(seed)
    meets, savings = rng.random((n, 50)) < rng.random((n, 1)), rng.random(n)
    chosen = best_set(meets, savings, size)
    assert len(chosen) == len(set(chosen)) == min(n, size)
    assert meets[chosen[0]].sum() == meets.sum(axis=1).max()


def test_a_copy_of_what_is_in_adds_nothing():
    truths = np.arange(100)
    safe, risky, other = truths < 95, truths < 60, truths >= 40
    assert best_set(np.stack([safe, risky, risky, other]), [0.1, 0.5, 0.5, 0.4], 3) == [0, 1, 3]


def test_who_is_out_is_out_for_the_reason_that_is_given():
    settings_ = {f"good{i}": (1.0, 0.5 + 0.01 * i) for i in range(20)}
    settings_ |= {"bad": (0.5, 0.1), "dear": (1.0, 1.0)}
    rungs, _ = tune(World(settings_, questions_about(80, 5), 0), 0.9)
    fate = {s.spec: s.fate for s in rungs[0].standings}
    assert (fate["bad"], fate["dear"], fate["good0"]) == (BELOW, SAVES_NOTHING, ON)
    assert OUTBID in fate.values()
    for before, after in pairwise(rungs):
        assert [s.spec for s in before.alive] == [s.spec for s in after.standings]
    assert len(rungs[-1].alive) <= FINALISTS


def test_images_needed_grow_as_the_share_comes_near_the_target():
    questions = questions_about(200, 1, ("a",))
    plain = {q.question_id: 1.0 for q in questions}
    lost = [{q.question_id: float(i >= k) for i, q in enumerate(questions)} for k in (2, 6, 8, 12)]
    needed = [needed_images(questions, plain, scores, 0.95) for scores in lost]
    assert needed[3] is None  # the share is below the target: no sample helps
    assert 50 < needed[0] < needed[1] < needed[2]
