"""The metric of an lmms-eval task: its own ``process_results`` and aggregations, for single samples and for all."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from bench_world import png
from lmms_own import own_task, rows
from lmms_world import installed_task, pope_rows, require_lmms_eval, write_small_pope, write_task

require_lmms_eval()

from vtc.eval.tasks.media.images import open_image  # noqa: E402
from vtc.eval.tasks.metrics import official  # noqa: E402
from vtc.eval.tasks.metrics.base import metric  # noqa: E402
from vtc.integrations.lmms_eval import load_lmms_task  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A POPE of two pictures with two questions each."""
    return write_small_pope(tmp_path_factory.mktemp("pope"))


def test_the_metric_is_the_tasks_own(folder: Path) -> None:
    tasks = load_lmms_task("pope_local", str(folder))
    own = metric(tasks.questions[0].metric)
    assert own.main == "pope_accuracy"
    answers = ["yes", "yes", "No", "maybe"]
    told = {
        q.question_id: {"prediction": a, "parsed": own.parse(q, a), "score": own.score(q, a)}
        for q, a in zip(tasks.questions, answers, strict=True)
    }
    assert [row["score"] for row in told.values()] == [1, 0, 0, 0]
    figures = official(tasks.questions, told)["pope_local"]
    # one hit, one false alarm, one miss; lmms-eval leaves "maybe" out of the misses
    half = dict.fromkeys(("pope_precision", "pope_recall", "pope_f1_score", "pope_yes_ratio"), 0.5)
    assert figures == pytest.approx({"pope_accuracy": 0.25, **half, "unparsed": 0})


def test_mme_is_scored_in_pairs_by_the_tasks_own_aggregation(tmp_path: Path) -> None:
    asked = [
        {
            "question_id": f"color/{i // 2}.jpg", "image": {"bytes": png(i // 2), "path": None},
            "category": ("color", "code_reasoning")[i // 4], "question": f"is it {i}? Please answer yes or no.",
            "answer": ("Yes", "No")[i % 2],
        }
        for i in range(8)
    ]  # fmt: skip
    tasks = load_lmms_task(str(write_task(tmp_path, "mme_local", asked, include=installed_task("mme/mme.yaml"))))
    own = metric(tasks.questions[0].metric)
    answers = ["yes", "no", "yes, it is", "yes", "no", "no", "Yes.", "no"]
    told = {
        q.question_id: {"prediction": a, "parsed": own.parse(q, a), "score": own.score(q, a)}
        for q, a in zip(tasks.questions, answers, strict=True)
    }
    assert [row["score"] for row in told.values()] == [1, 1, 1, 0, 0, 1, 1, 1]
    # a category's score is its accuracy plus the share of images with both right
    figures = official(tasks.questions, told)["mme_local"]
    assert figures == {"mme_perception_score": 75 + 50, "mme_cognition_score": 75 + 50, "unparsed": 0}
    told.popitem()
    with pytest.warns(UserWarning, match="gives no mme_cognition_score: AssertionError: MME only supports pairwise"):
        assert official(tasks.questions, told)["mme_local"] == {"mme_perception_score": 125, "unparsed": 0}


def test_a_sample_is_scored_by_its_aggregation_where_the_task_keeps_no_number(tmp_path: Path) -> None:
    tasks = load_lmms_task(own_task(tmp_path, "percent_local", rows(2)))
    q, own = tasks.questions[0], metric(tasks.questions[0].metric)
    assert (own.score(q, "a0"), own.score(q, "a1")) == (1, 0)
    told = {q.question_id: {"prediction": "a0", "parsed": "a0", "score": 0} for q in tasks.questions}
    assert official(tasks.questions, told)["percent_local"] == {"points": 50, "unparsed": 0}


def test_figures_that_are_no_score_are_passed_over(tmp_path: Path) -> None:
    listed = [
        {"metric": "sent", "aggregation": "submit", "higher_is_better": True},
        {"metric": "errors", "aggregation": "mean", "higher_is_better": False},
        {"metric": "points", "aggregation": "mean", "higher_is_better": True},
    ]
    tasks = load_lmms_task(own_task(tmp_path, "both_local", rows(2), process_results="both", metric_list=listed))
    q, own = tasks.questions[0], metric(tasks.questions[0].metric)
    assert own.main == "points"
    assert (own.score(q, "a0"), own.score(q, "b")) == (1, 0)
    told = {q.question_id: {"prediction": "a0", "parsed": "a0", "score": 0} for q in tasks.questions}
    assert official(tasks.questions, told)["both_local"] == {"points": 0.5, "errors": 0.5, "unparsed": 0}


def test_scores_outside_0_1_are_refused(tmp_path: Path) -> None:
    listed = [{"metric": "marks", "aggregation": "mean", "higher_is_better": True}]
    (q,) = load_lmms_task(
        own_task(tmp_path, "marks_local", rows(1), process_results="marks", metric_list=listed)
    ).questions
    with pytest.raises(ValueError, match="'marks_local', row 0: marks is 6, vtc bench compares scores in"):
        metric(q.metric).score(q, "sixsix")


def test_a_bad_row_is_named_at_once(tmp_path: Path) -> None:
    """lmms-eval tries five times, two seconds apart."""
    path = write_task(
        tmp_path, "pope_bad", pope_rows([(png(1), "is it?", "perhaps")]), include=installed_task("pope/pope.yaml")
    )
    (q,) = load_lmms_task(str(path)).questions
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"'pope_bad', row 0: its process_results failed on 'yes' .AssertionError"):
        metric(q.metric).score(q, "yes")
    assert time.monotonic() - start < 2


def test_another_process_reads_media_and_scores_by_itself(folder: Path) -> None:
    """What a worker gets has neither the task nor its data in it."""
    from vtc.integrations.lmms_eval import task_lookup as manager
    from vtc.integrations.lmms_eval import task_metric as scoring

    tasks = load_lmms_task("pope_local", str(folder))
    sent = pickle.dumps(tasks.part(tasks.questions[2:]))
    assert len(sent) < 4000
    manager.load_tasks.cache_clear()
    scoring.metric_named.cache_clear()
    part = pickle.loads(sent)
    (image_id,) = part.images
    assert np.array_equal(np.asarray(part.image(image_id)), np.asarray(open_image(png(1))))
    q = part.questions[0]
    assert [metric(q.metric).score(q, text) for text in ("yes", " YES", "no", "yes.")] == [1, 1, 0, 0]
