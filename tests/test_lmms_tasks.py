"""``load_lmms_task``: lmms-eval's tasks as evaluation sets, with their own prompts, media and metrics."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_world import png
from lmms_world import installed_task, pope_rows, require_lmms_eval, write_pope, write_task
from PIL import Image

require_lmms_eval()

from vtc.eval.images import open_image  # noqa: E402
from vtc.eval.metrics import official  # noqa: E402
from vtc.eval.metrics.base import metric  # noqa: E402
from vtc.eval.video import Clip  # noqa: E402
from vtc.integrations.lmms_eval import load_lmms_task  # noqa: E402
from vtc.integrations.lmms_eval.manager import Source  # noqa: E402

UTILS = """
def text(doc):
    return doc["question"]

def visual(doc):
    return [image.convert("RGB") for image in doc["images"]]

def clip(doc):
    return [doc["video"]]

def nothing(doc):
    return []

def interleaved(doc):
    image, words = {"type": "image", "url": doc["images"][0]}, {"type": "text", "text": "and"}
    return [{"role": "user", "content": [image, words, image, words]}]

def share(doc, results):
    return {"points": {"right": int(results[0] == doc["answer"])}}

def percent(items):
    return 100.0 * sum(item["right"] for item in items) / len(items)

def marks(doc, results):
    return {"marks": float(len(results[0]))}

def mean(items):
    return sum(items) / len(items)

def submit(items, args):
    raise AssertionError("this writes a file")

def pairs(items):
    assert len(items) == 2, "pairs only"
    return sum(items)

def both(doc, results):
    score = float(results[0] == doc["answer"])
    return {"sent": results[0], "errors": 1 - score, "points": score, "pairs": score}
"""
LISTED = [{"metric": "points", "aggregation": "percent", "higher_is_better": True}]


def own_task(folder: Path, task: str, rows: list[dict[str, Any]], **config: Any) -> str:
    """A task with functions of its own; gives the path of its YAML file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "utils.py").write_text(UTILS)
    usual = {
        "test_split": "test", "output_type": "generate_until", "doc_to_target": "answer", "doc_to_text": "text",
        "doc_to_visual": "visual", "process_results": "share", "metric_list": LISTED,
    }  # fmt: skip
    path = write_task(folder, task, rows, **{**usual, **config})
    content = path.read_text()
    for name in ("doc_to_text", "doc_to_visual", "process_results", "aggregation", "doc_to_messages"):
        content = content.replace(f"{name}: ", f"{name}: !function utils.")
    path.write_text(content)
    return str(path)


def rows(count: int, images: int = 1, **more: Any) -> list[dict[str, Any]]:
    pictures = [{"bytes": png(i), "path": None} for i in range(count * images)]
    return [
        {"question": f"what is {i}?", "answer": f"a{i}", "images": pictures[i * images : (i + 1) * images], **more}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A POPE of two pictures with two questions each."""
    path = tmp_path_factory.mktemp("pope")
    write_pope(
        path,
        [(png(i // 2), f"is there a {c}?", a) for i, (c, a) in enumerate(zip("abcd", ["yes", "no"] * 2, strict=True))],
    )
    return path


def test_questions_are_what_the_task_says(folder: Path) -> None:
    tasks = load_lmms_task("pope_local", str(folder))
    assert (tasks.name, tasks.tasks) == ("lmms:pope_local", ("pope_local",))
    assert [q.question_id for q in tasks.questions] == [f"pope_local-{i}" for i in range(4)]
    assert [(q.question, q.answer, q.references) for q in tasks.questions[:2]] == [
        ("is there a a?", "yes", ("yes",)),
        ("is there a b?", "no", ("no",)),
    ]
    assert [q.category for q in tasks.questions] == ["random", "popular", "adversarial", "random"]
    assert tasks.info["pope_local"].max_new_tokens == 4
    assert len(tasks.images) == 2  # the same pixels are one picture, encoded once
    assert [q.image_id for q in tasks.questions] == [i for i in tasks.images for _ in range(2)]
    for i, image_id in enumerate(tasks.images):
        assert np.array_equal(np.asarray(tasks.image(image_id)), np.asarray(open_image(png(i))))
    assert load_lmms_task(str(folder / "pope_local.yaml")) == tasks
    assert "pope_local row 2" in tasks.images.place(tasks.questions[2].image_id)


def test_the_official_prompt_comes_from_the_included_file(tmp_path: Path) -> None:
    path = write_task(
        tmp_path, "pope_asked", pope_rows([(png(1), " is it red? ", "no")]), include=installed_task("pope/pope.yaml")
    )
    (question,) = load_lmms_task(str(path)).questions
    assert question.question == "is it red?\nAnswer the question using a single word or phrase."
    assert load_lmms_task(str(path)).info["pope_asked"].max_new_tokens == 128


def test_a_limit_takes_the_first_rows_as_lmms_eval_does(folder: Path) -> None:
    whole, part = load_lmms_task("pope_local", str(folder)), load_lmms_task("pope_local", str(folder), limit=3)
    assert part.questions == whole.questions[:3]
    assert part.limit == 3
    assert part.fingerprint != whole.fingerprint
    with pytest.raises(ValueError, match="limit=0 is out of range"):
        load_lmms_task("pope_local", str(folder), limit=0)


def test_another_process_reads_media_and_scores_by_itself(folder: Path) -> None:
    """What a worker gets has neither the task nor its data in it."""
    from vtc.integrations.lmms_eval import manager
    from vtc.integrations.lmms_eval import metric as scoring

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


def test_several_images_videos_and_rows_without_any(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    several = load_lmms_task(own_task(tmp_path / "a", "several_local", rows(2, images=2)))
    q = several.questions[1]
    assert (len(q.media), q.kind) == (2, "image")
    assert [np.asarray(v).tolist() for v in several.visuals(q)] == [
        np.asarray(open_image(png(i))).tolist() for i in (2, 3)
    ]
    film = load_lmms_task(
        own_task(
            tmp_path / "b",
            "film_local",
            [{"question": "who?", "answer": "me", "video": "/films/a.mp4"}],
            doc_to_visual="clip",
        )
    )
    assert film.questions[0].kind == "video"
    assert film.images[film.questions[0].image_id] == Clip(Path("/films/a.mp4"))
    mixed = [
        {"question": f"{i}?", "answer": "a", "images": [{"bytes": png(i), "path": None}] * (i == 1)} for i in (1, 2)
    ]
    found = load_lmms_task(own_task(tmp_path / "c", "mixed_local", mixed))
    assert [q.question for q in found.questions] == ["1?"]
    assert found.skipped == ("lmms-eval's task mixed_local row 1: has no image",)
    with pytest.raises(ValueError, match=r"'blind_local' has no question .*blind_local row 0: has no image"):
        load_lmms_task(own_task(tmp_path / "d", "blind_local", rows(1), doc_to_visual="nothing"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"doc_to_messages": "interleaved"}, "several turns or text between images"),
        ({"generation_kwargs": {"temperature": 0.7, "do_sample": True}}, "vtc bench decodes greedily"),
        ({"generation_kwargs": {"num_beams": 4}}, "vtc bench decodes greedily"),
        ({"output_type": "loglikelihood"}, "of the type loglikelihood, not generate_until"),
    ],
)
def test_what_is_more_than_one_greedy_answer_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    path = own_task(tmp_path, "more_local", rows(1), **config)
    with pytest.raises(ValueError, match=f"'more_local'.*{message}.*run it with lmms_eval --model vtc"):
        load_lmms_task(path)


def test_groups_and_tags_are_all_their_tasks(tmp_path: Path) -> None:
    for name in ("one", "two"):
        own_task(tmp_path, f"{name}_local", rows(2), tag="all_local")
    tasks = load_lmms_task("all_local", str(tmp_path))
    assert sorted(tasks.tasks) == ["one_local", "two_local"]
    assert tasks.counts == {"one_local": 2, "two_local": 2}
    names = {q.metric for q in tasks.questions}
    assert names == {f"lmms:all_local@{tmp_path}#{name}" for name in tasks.tasks}
    assert all(Source.of_metric(name).metric == name for name in names)
    q = tasks.questions[0]
    assert metric(q.metric).score(q, "a0") == 1


def test_unknown_names_and_broken_data_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"lmms-eval has no task 'pope_lokal'\. Did you mean 'pope_local'"):
        load_lmms_task("pope_lokal", str(folder))
    with pytest.raises(ValueError, match="no such folder of lmms-eval tasks: /no/where"):
        load_lmms_task("pope_local", "/no/where")
    with pytest.raises(ValueError, match=r"no such task file: none\.yaml"):
        load_lmms_task("none.yaml")
    (tmp_path / "group.yaml").write_text("group: a\n")
    with pytest.raises(ValueError, match="defines no single task of lmms-eval"):
        load_lmms_task(str(tmp_path / "group.yaml"))
    with pytest.raises(ValueError, match=r"has no task 'x'\. There is: pope_local"):
        metric(f"lmms:pope_local@{folder}#x")


def test_rows_that_cant_be_read_stop_or_are_skipped(tmp_path: Path) -> None:
    """lmms-eval would have Pillow fill up a broken picture."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "PNG")
    broken = pope_rows([(png(1), "is it?", "yes"), (data.getvalue()[:6000], "is it?", "no"), (png(2), "is it?", "no")])
    path = str(write_task(tmp_path, "pope_torn", broken, include=installed_task("pope/pope.yaml")))
    with pytest.raises(ValueError, match="task pope_torn row 1: image file is truncated"):
        load_lmms_task(path)
    found = load_lmms_task(path, on_error="skip")
    assert [q.question_id for q in found.questions] == ["pope_torn-0", "pope_torn-2"]
    (line,) = found.skipped
    assert "pope_torn row 1" in line


def test_lmms_eval_leaves_no_setting_behind(folder: Path) -> None:
    """In a fresh process, where it is imported for the first time: our own broken pictures must still be errors."""
    code = f"""if True:
        from PIL import ImageFile
        from vtc.integrations.lmms_eval import load_lmms_task
        print(len(load_lmms_task({str(folder / "pope_local.yaml")!r}).questions), ImageFile.LOAD_TRUNCATED_IMAGES)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4", "False"]
    assert done.stderr == ""
