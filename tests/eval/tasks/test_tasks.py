"""Evaluation sets: the fixed choice of questions, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bench_world import png, save_data

from vtc.bundled_files import bundled_data
from vtc.eval.tasks.questions import Question
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.tasks.reading.parquet_set import save_tasks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_data(tmp_path / "data", images=6)


def test_a_smaller_limit_is_a_part_of_a_larger_one(folder: Path):
    tasks = load_tasks(folder)
    small, large = (tasks.subset(None, n) for n in (3, 7))
    assert small.counts == dict.fromkeys(("color", "exist", "count"), 3)
    assert {q.question_id for q in small.questions} < {q.question_id for q in large.questions}
    assert small.questions == load_tasks(folder).subset(None, 3).questions
    assert tasks.subset(None, 10**6).counts == tasks.counts
    assert len(small.groups()) == 2  # two questions of each task per image: few images serve many questions


def test_tasks_keep_the_asked_order(folder: Path):
    assert load_tasks(folder).subset(["count", "color", "count"]).tasks == ("count", "color")


def test_the_fingerprint_follows_the_content(folder: Path, tmp_path: Path):
    tasks = load_tasks(folder)
    assert tasks.fingerprint == load_tasks(save_data(tmp_path / "same", images=6)).fingerprint
    assert tasks.fingerprint != load_tasks(save_data(tmp_path / "other", images=5)).fingerprint


def test_images_may_be_structs(folder: Path):
    table = pq.read_table(folder / "images.parquet").to_pylist()
    rows = [{"image_id": r["image_id"], "image": {"bytes": r["image"], "path": None}} for r in table]
    pq.write_table(pa.Table.from_pylist(rows), folder / "images.parquet")
    assert load_tasks(folder).image("i0").size == (56, 56)


@pytest.mark.parametrize("column", ["answer", "image_id", "task"])
def test_a_missing_column_is_named(folder: Path, column: str):
    path = folder / "questions.parquet"
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(ValueError, match=f"has no column '{column}'"):
        load_tasks(folder)


def test_refusals(folder: Path, tmp_path: Path):
    tasks = load_tasks(folder)
    with pytest.raises(ValueError, match=r"unknown task 'colour'.*color"):
        tasks.subset(["colour"])
    with pytest.raises(ValueError, match="limit=0"):
        tasks.subset(None, 0)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_tasks(tmp_path / "nowhere")
    one = Question("q", "t", "i", "what?", "a")
    with pytest.raises(ValueError, match="'q' occurs more than once"):
        load_tasks(save_tasks(tmp_path / "twice", {"i": png(0)}, [one, one]))
    with pytest.raises(ValueError, match="image 'i', which"):
        load_tasks(save_tasks(tmp_path / "blind", {"j": png(0)}, [one]))
    (folder / "images.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="not a readable parquet"):
        load_tasks(folder)


def test_the_bundled_set_decodes():
    tasks = load_tasks(bundled_data())
    assert min(tasks.counts.values()) >= 400
    sample = tasks.questions[:: len(tasks.questions) // 5]
    assert {tasks.image(q.image_id).mode for q in sample} == {"RGB"}


def test_a_plain_set_skips_rows_that_cannot_be_used(tmp_path: Path) -> None:
    questions = [Question(str(i), "colors", image, "what?", "red") for i, image in enumerate(("a", "b", "a"))]
    with pytest.raises(ValueError, match="question '1' is about image 'b', which is not among the images"):
        save_tasks(tmp_path / "set", {"a": png(1)}, questions)
    assert not (tmp_path / "set").exists()
    save_tasks(tmp_path / "set", {"a": png(1), "b": png(2)}, questions)
    save_tasks(tmp_path / "other", {"a": png(1)}, questions[:1])
    (tmp_path / "other" / "images.parquet").replace(tmp_path / "set" / "images.parquet")
    with pytest.raises(ValueError, match=r"question '1' is about image 'b', which .*images\.parquet lacks"):
        load_tasks(tmp_path / "set")
    tasks = load_tasks(tmp_path / "set", on_error="skip")
    assert [q.question_id for q in tasks.questions] == ["0", "2"]
    assert len(tasks.skipped) == 1
    assert "question '1' is about image 'b'" in tasks.skipped[0]
