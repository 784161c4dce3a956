"""Labelled folders: what is read, what is refused and how, and which output stands for which class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bench_world import png
from classify_world import CLASSES, save_pictures

from vtc.eval.classify.class_labels import place_labels
from vtc.eval.classify.pictures import class_names, load_pictures, read_mapping
from vtc.eval.tasks.reading.unusable_rows import check_media


def write_parquet(folder: Path, **columns: Any) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "test.parquet")
    return folder


def test_a_folder_per_class(tmp_path: Path):
    folder = save_pictures(tmp_path / "set", each=2)
    (folder / "ant" / "deep").mkdir()
    (folder / "ant" / "deep" / "X.PNG").write_bytes(png(7))
    (folder / "ant" / "notes.txt").write_text("no picture")
    (folder / ".hidden").mkdir()
    found = load_pictures(folder)
    assert [(q.question_id, q.answer) for q in found.questions[:3]] == [
        ("ant/0.png", "ant"), ("ant/1.png", "ant"), ("ant/deep/X.PNG", "ant"),
    ]  # fmt: skip
    assert len(found.questions) == 7
    assert class_names(found) == list(CLASSES)
    assert found.image("bee/1.png").size == (40, 36)


def test_parquet_with_labels(tmp_path: Path):
    data = [png(i) for i in range(3)]
    named = load_pictures(write_parquet(tmp_path / "a", image=data, label=["b", "a", "b"], image_id=["x", "y", "z"]))
    assert [(q.question_id, q.answer) for q in named.questions] == [("x", "b"), ("y", "a"), ("z", "b")]
    structs = [{"bytes": d, "path": None} for d in data]  # as the hub's data sets have them
    numbered = load_pictures(write_parquet(tmp_path / "b", image=structs, label=[10, 2, 1]))
    assert [q.question_id for q in numbered.questions] == ["test-1", "test-2", "test-3"]
    assert class_names(numbered) == ["1", "2", "10"]
    assert numbered.image("test-2").size == (56, 56)


def test_what_is_no_labelled_folder(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no labelled pictures in .*a folder of images for each class"):
        load_pictures(tmp_path)
    folder = save_pictures(tmp_path / "set", each=1)
    (folder / "dog").mkdir()
    with pytest.raises(ValueError, match="class 'dog' is empty"):
        load_pictures(folder)
    with pytest.raises(ValueError, match="no column 'label'"):
        load_pictures(write_parquet(tmp_path / "a", image=[png(0)]))
    with pytest.raises(ValueError, match=r"test.parquet row 2: the label None is neither"):
        load_pictures(write_parquet(tmp_path / "b", image=[png(0)] * 2, label=["a", None]))
    with pytest.raises(ValueError, match=r"test.parquet row 1: the label 1.5 is neither"):
        load_pictures(write_parquet(tmp_path / "b", image=[png(0)], label=[1.5]))
    with pytest.raises(ValueError, match="image_id 'x' occurs more than once"):
        load_pictures(write_parquet(tmp_path / "c", image=[png(0)] * 2, label=["a", "b"], image_id=["x", "x"]))


def test_an_unreadable_picture_is_named_or_skipped(tmp_path: Path):
    folder = save_pictures(tmp_path / "set", each=2)
    (folder / "bee" / "0.png").write_bytes(png(1)[:150])
    tasks = load_pictures(folder)
    with pytest.raises(ValueError, match=r"set/bee/0.png\) cannot be read as an image"):
        check_media(tasks)
    left = check_media(tasks, "skip")
    assert len(left.questions) == 5
    assert len(left.skipped) == 1
    assert "bee/0.png" in left.skipped[0]


def test_the_fingerprint_is_of_pictures_and_labels(tmp_path: Path):
    one, two = save_pictures(tmp_path / "a"), save_pictures(tmp_path / "b")
    assert load_pictures(one).fingerprint == load_pictures(two).fingerprint
    (two / "ant" / "0.png").write_bytes(png(99, (40, 36)))
    changed = load_pictures(two).fingerprint
    assert changed != load_pictures(one).fingerprint
    (two / "ant" / "0.png").write_bytes((one / "ant" / "0.png").read_bytes())
    (two / "ant").rename(two / "asp")
    assert load_pictures(two).fingerprint not in (changed, load_pictures(one).fingerprint)


@pytest.mark.parametrize(
    ("classes", "outputs", "named", "said", "places", "how"),
    [
        (["ant", "bee"], 2, None, {}, {"ant": 0, "bee": 1}, "sorted order"),
        (["ant", "bee"], 3, ["bee", "cat", "ant"], {}, {"ant": 2, "bee": 0}, "the model's names"),
        (["2", "10"], 11, None, {}, {"2": 2, "10": 10}, "their numbers"),
        (["7", "8"], 2, ["7", "8"], {}, {"7": 0, "8": 1}, "the model's names"),
        (["ant", "bee"], 2, ["ant", "bee"], {"bee": 0, "ant": 1, "x": 9}, {"ant": 1, "bee": 0}, "the classes file"),
    ],
)
def test_which_output_a_class_is(
    classes: list[str], outputs: int, named: Any, said: Any, places: dict[str, int], how: str
):
    assert place_labels(classes, outputs, named, said, "data") == (places, how)


@pytest.mark.parametrize(
    ("classes", "outputs", "said", "message"),
    [
        (["ant", "bee"], 3, {}, r"data has 2 classes \(ant, bee, ...\), the model has 3 outputs: .*classes.json"),
        (["0", "3"], 3, {}, "class '3' is output 3, but the model has 0 to 2"),
        (["ant"], 3, {"bee": 0}, "does not say which output the class 'ant' is"),
        (["ant"], 3, {"ant": -1}, "class 'ant' is output -1, but the model has 0 to 2"),
        (["ant"], 3, {"ant": "an ant"}, "a classifier needs a number"),
    ],
)
def test_where_it_cannot_be_told(classes: list[str], outputs: int, said: Any, message: str):
    with pytest.raises(ValueError, match=message):
        place_labels(classes, outputs, None, said, "data")


def test_files_that_say_it(tmp_path: Path):
    assert read_mapping(tmp_path) == {}
    (tmp_path / "classes.txt").write_text("bee\n\nant \n")
    assert read_mapping(tmp_path) == {"bee": 0, "ant": 1}
    (tmp_path / "classes.txt").write_text("bee\nbee\n")
    with pytest.raises(ValueError, match="names a class twice"):
        read_mapping(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps({"ant": 5}))
    assert read_mapping(tmp_path) == {"ant": 5}
    for bad, message in (("[1]", "must be like"), ('{"a": true}', "must be like"), ("{", "not valid JSON")):
        (tmp_path / "classes.json").write_text(bad)
        with pytest.raises(ValueError, match=message):
            read_mapping(tmp_path)
