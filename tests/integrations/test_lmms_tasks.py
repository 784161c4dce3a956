"""``load_lmms_task``: lmms-eval's tasks as evaluation sets, with their own prompts, media and metrics."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_world import png
from lmms_own import own_task, rows
from lmms_world import installed_task, pope_rows, require_lmms_eval, write_small_pope, write_task
from PIL import Image, ImageFile

require_lmms_eval()

from vtc.eval.sweep.asked_questions import load_asked  # noqa: E402
from vtc.eval.tasks.media.images import open_image  # noqa: E402
from vtc.eval.tasks.media.video import Clip  # noqa: E402
from vtc.eval.tasks.metrics.base import metric  # noqa: E402
from vtc.integrations.lmms_eval import load_lmms_task  # noqa: E402
from vtc.integrations.lmms_eval.task_lookup import Source  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A POPE of two pictures with two questions each."""
    return write_small_pope(tmp_path_factory.mktemp("pope"))


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
    asked = [{"question": "who?", "answer": "me", "video": "/films/a.mp4"}]
    path = own_task(tmp_path / "e", "films_local", asked, doc_to_visual="clips")
    with pytest.raises(ValueError, match=r"films_local row 0: has a video and more beside it.*lmms_eval --model vtc"):
        load_lmms_task(path)
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


@pytest.mark.parametrize("allowed", [False, True])
def test_rows_that_cant_be_read_stop_or_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    """lmms-eval would have Pillow fill up a broken picture, and its modules say so for the whole process."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
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


def test_vtc_bench_takes_names_and_files_and_skips_such_rows(tmp_path: Path, folder: Path) -> None:
    path = folder / "pope_local.yaml"  # not taken for a definition of our own
    for found in (load_asked([f"lmms:{path}"]), load_asked(["lmms:pope_local"], include_path=folder)):
        tasks, names = found
        assert names is None
        assert tasks == load_lmms_task(str(path))
    torn = pope_rows([(png(1), "is it?", "yes"), (png(2)[:90], "is it?", "no")])
    path = write_task(tmp_path, "pope_short", torn, include=installed_task("pope/pope.yaml"))
    with pytest.raises(ValueError, match="pope_short row 1"):
        load_asked([f"lmms:{path}"])
    tasks, _ = load_asked([f"lmms:{path}"], on_error="skip")
    assert (len(tasks.questions), len(tasks.skipped)) == (1, 1)


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
