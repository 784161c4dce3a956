"""Bad definitions and bad data: what is said, and what is skipped when asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import ImageFile
from public_data import PUBLIC, picture, struct, write

from vtc.eval.tasks.reading.definition import read_definition
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.tasks.reading.read_benchmarks import load_benchmarks, load_folder
from vtc.eval.tasks.reading.unusable_rows import check_media

YAML = """
task: mine
metric: pope
files: questions.jsonl
image: image
prompt: "{{ question }}"
answer: answer
"""


def folder(root: Path, lines: list[Any], yaml: str = YAML) -> Path:
    """A task of one's own; a line is a row, or text as it stands."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "p.png").write_bytes(picture(1))
    (root / "task.yaml").write_text(yaml)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "questions.jsonl").write_text(text)
    return root


def row(**more: Any) -> dict[str, Any]:
    return {"question": "Is it?", "answer": "yes", "image": "p.png", **more}


def without(column: str) -> dict[str, Any]:
    return {key: value for key, value in row().items() if key != column}


BAD_ROWS = {
    "torn line": ('{"question": "Is it?", "ans', "line 2: is not valid JSON"),
    "no mapping": ("[1, 2]", "line 2: is no mapping of columns to values but '[1, 2]'"),
    "no answer": (
        without("answer"),
        "line 2: has no column 'answer' (the definition's 'answer'); it has question",
    ),
    "no question": (without("question"), "line 2: prompt: 'question' is undefined; columns: answer"),
    "no image": (without("image"), "line 2: has no column 'image'"),
    "empty answer": (row(answer=None), "line 2: the answer is empty"),
    "answer of another kind": (row(answer="perhaps"), "line 2: the answer must be yes or no, it is 'perhaps'"),
    "missing file": (row(image="q.png"), "line 2: no such image: "),
    "null image": (row(image=None), "line 2: the image is empty"),
    "empty question": (row(question=" "), "line 2: the question is empty"),
    "list as answer": (row(answer=["yes"]), "line 2: answer 'answer' is a list"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_or_skipped(name: str, tmp_path: Path):
    bad, message = BAD_ROWS[name]
    place = folder(tmp_path / "mine", [row(), bad, row(question="Is that?")])
    with pytest.raises((ValueError, FileNotFoundError)) as stopped:
        load_tasks(place)
    assert message in str(stopped.value)
    assert "questions.jsonl line 2" in str(stopped.value)
    assert "\n" not in str(stopped.value)
    tasks = load_folder(place, on_error="skip")
    assert [q.question for q in tasks.questions] == ["Is it?", "Is that?"]
    assert len(tasks.skipped) == 1
    assert message in tasks.skipped[0]


def test_on_error_is_checked(tmp_path: Path):
    with pytest.raises(ValueError, match=r"on_error='ignore' is unknown: allowed are stop, skip"):
        load_folder(folder(tmp_path, [row()]), on_error="ignore")


def test_nothing_left(tmp_path: Path):
    place = folder(tmp_path / "mine", [row(answer="x"), row(answer="y")])
    with pytest.raises(
        ValueError, match=r"mine has no question that can be used; the first problem: .* line 1: the answer"
    ):
        load_folder(place, on_error="skip")
    with pytest.raises(ValueError, match="mine has no question"):
        load_tasks(folder(tmp_path / "empty", []))


def test_question_ids_are_unique(tmp_path: Path):
    place = folder(tmp_path / "mine", [row(n=1), row(n=1)], YAML + "id: n\n")
    with pytest.raises(ValueError, match=r"line 2: question id 'mine/1' occurs more than once, first in .* line 1"):
        load_tasks(place)


BAD_DEFINITIONS = {
    "unknown key": (YAML + "promt: x\n", "unknown key 'promt'. There is: task, metric, prompt"),
    "missing key": (
        YAML.replace("answer: answer\n", ""),
        "'answer' is missing; a definition needs task, metric, prompt",
    ),
    "unknown metric": (YAML.replace("pope", "bleu"), "unknown metric 'bleu'. There is: ai2d, anls"),
    "no YAML": ("task: [", "is not valid YAML"),
    "no mapping": ("- a\n- b\n", "a definition is a mapping"),
    "template": (YAML.replace("{{ question }}", "{{ question "), "prompt: unexpected end of template"),
    "type": (YAML.replace('"{{ question }}"', "[1]"), "prompt must be a text, it is [1]"),
    "number": (YAML + "num_frames: many\n", "num_frames must be a whole number from 1 on, it is 'many'"),
    "no image": (YAML.replace("image: image\n", ""), "one of image, images and video has to be said"),
    "both": (YAML + "video: v\n", "image and video can't both be said"),
    "images": (YAML.replace("image: image", "images: {key: a}"), "images must be a mapping with key and image"),
    "image id": (YAML.replace("image: image", "images: {key: a, image: b}"), "image_id has to say which"),
    "clip": (YAML.replace("image: image", "video: {path: v, clip: [a]}"), "clip must be [start, end]"),
    "video": (YAML.replace("image: image", "video: {file: v}"), "video must be a path or a mapping with path"),
    "video's fps": (YAML.replace("image: image", "video: {path: v, fps: 0}"), "video: fps must be a number above 0"),
    "fps": (YAML + "kind: frames\nfps: .inf\n", "fps must be a number above 0, a column or a template, it is inf"),
    "fps of a picture": (YAML + "fps: 2\n", "fps is of a video's frames: say video, or kind where"),
}


@pytest.mark.parametrize("name", BAD_DEFINITIONS)
def test_bad_definitions(name: str, tmp_path: Path):
    text, message = BAD_DEFINITIONS[name]
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"task\.yaml") as refused:
        read_definition(tmp_path / "task.yaml")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_unknown_names_and_places(tmp_path: Path):
    with pytest.raises(ValueError, match=r"unknown task 'pop'. There is: ai2d, chartqa, .*or a definition's file"):
        load_benchmarks(["pop"], tmp_path)
    with pytest.raises(FileNotFoundError, match="no such task definition"):
        load_benchmarks([str(tmp_path / "none.yaml")], tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_benchmarks(["pope"], tmp_path / "none")
    with pytest.raises(
        FileNotFoundError, match=r"no data of pope in .*looked for data/test-\*.parquet.*lmms-lab-encoder/POPE"
    ):
        load_benchmarks(["pope"], tmp_path)
    with pytest.raises(ValueError, match="no task is named"):
        load_benchmarks([])
    with pytest.raises(ValueError, match="videos of videomme are not in the hub's tables"):
        load_benchmarks(["videomme"])


def test_a_missing_column_is_named(tmp_path: Path):
    for column, name in (("answer", "pope"), ("image_source", "pope"), ("image", "pope"), ("answers", "vqav2")):
        write(tmp_path / column, name)
        path = next((tmp_path / column).rglob("*.parquet"))
        pq.write_table(pq.read_table(path).drop_columns([column]), path)
        with pytest.raises(ValueError, match=rf"\.parquet has no column '{column}.*it has .*question_id"):
            load_benchmarks([name], tmp_path / column, on_error="skip")  # of the whole file: never skipped


def test_broken_parquet(tmp_path: Path):
    write(tmp_path, "pope")
    next(tmp_path.rglob("*.parquet")).write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"test-00000-of-00001.parquet is not a readable parquet file"):
        load_benchmarks(["pope"], tmp_path)


def test_held_back_answers(tmp_path: Path):
    rows = [{**r, "answers": None} for r in PUBLIC["docvqa"].rows]
    write(tmp_path, "docvqa", {"DocVQA/validation-00000-of-00001.parquet": rows})
    with pytest.raises(ValueError, match=r"parquet row 1: answer: .*None"):
        load_benchmarks(["docvqa"], tmp_path)


def broken(name: str, root: Path, at: int = 0) -> Path:
    """A benchmark with the image of one row cut off."""
    place, rows = next(iter(PUBLIC[name].files.items()))
    bad = {"bytes": picture(0)[:45], "path": None}
    return write(root, name, {place: [{**r, "image": bad} if i == at else r for i, r in enumerate(rows)]})


@pytest.mark.parametrize("allowed", [False, True])
def test_images_that_do_not_decode(allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where another library (lmms-eval does) has told Pillow to fill in what is missing of a file."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
    tasks = load_benchmarks(["ai2d"], broken("ai2d", tmp_path, 1))
    with pytest.raises(ValueError, match=r"parquet row 2\) cannot be read as an image") as stopped:
        tasks.image(tasks.questions[1].image_id)
    assert "of ai2d (" in str(stopped.value)
    with pytest.raises(ValueError, match=r"question ai2d/2: image .*row 2"):
        check_media(tasks)
    left = check_media(tasks, "skip")
    assert [q.question_id for q in left.questions] == ["ai2d/1", "ai2d/3"]
    assert len(left.skipped) == 1
    assert "row 2" in left.skipped[0]
    assert [left.image(q.image_id).size for q in left.questions] == [(24, 16)] * 2


def test_a_group_that_misses_one_goes_as_a_whole(tmp_path: Path):
    """MME: with one answer of an image unusable, or its picture broken, the image's other question goes too."""
    rows = [{**r, "answer": "maybe"} if i == 3 else r for i, r in enumerate(PUBLIC["mme"].rows)]
    write(tmp_path, "mme", {"data/test-00000-of-00001.parquet": rows})
    with pytest.raises(ValueError, match=r"row 4: the answer must be yes or no, it is 'maybe'"):
        load_benchmarks(["mme"], tmp_path)
    tasks = load_benchmarks(["mme"], tmp_path, on_error="skip")
    assert len(tasks.questions) == 6
    assert len(tasks.skipped) == 2
    assert "another row of its group 'existence/2.png' can't be used" in tasks.skipped[1]
    whole = load_benchmarks(["mme"], broken("mme", tmp_path / "broken"))
    left = check_media(whole, "skip")
    assert len(left.questions) == 6
    odd = {"data/test-00000-of-00001.parquet": PUBLIC["mme"].rows[:3]}
    with pytest.raises(ValueError, match=r"MME scores pairs of questions, .existence/2\.png. has 1"):
        load_benchmarks(["mme"], write(tmp_path / "odd", "mme", odd))


def test_options_with_a_gap(tmp_path: Path):
    rows = [{**PUBLIC["mmbench_en"].rows[0], "B": "nan"}]
    write(tmp_path, "mmbench_en", {"en/dev-00000-of-00001.parquet": rows})
    with pytest.raises(ValueError, match="an option is empty before the last one"):
        load_benchmarks(["mmbench_en"], tmp_path)


def test_an_image_that_its_table_lacks(tmp_path: Path):
    files = dict(PUBLIC["gqa"].files)
    files["testdev_balanced_images/testdev-00000-of-00001.parquet"] = [{"id": "n0", "image": struct(0)}]
    write(tmp_path, "gqa", files)
    with pytest.raises(ValueError, match=r"row 2: is about image 'n1', which the table of images lacks"):
        load_benchmarks(["gqa"], tmp_path)
    assert len(load_benchmarks(["gqa"], tmp_path, on_error="skip").questions) == 2


def test_an_answer_that_is_none_of_the_candidates(tmp_path: Path):
    bad = [{**PUBLIC["mvbench"].files["json/moving_count.json"][0], "answer": "7"}]
    write(tmp_path, "mvbench", {"json/moving_count.json": bad})
    with pytest.raises(ValueError, match=r"moving_count.json row 1: answer: .*7.* is not in list"):
        load_benchmarks(["mvbench"], tmp_path)


def test_json_files_have_to_be_lists(tmp_path: Path):
    write(tmp_path, "mvbench", {"json/moving_count.json": []})
    path = tmp_path / "MVBench" / "json" / "moving_count.json"
    for text, message in (("{", "is not valid JSON"), ('{"a": 1}', "must hold a list of rows")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"moving_count.json {message}"):
            load_benchmarks(["mvbench"], tmp_path)


def test_without_datasets_the_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(
        ValueError, match=r"reading pope from the hub needs datasets: pip install 'vtc\[hub\]', or give a"
    ):
        load_benchmarks(["pope"])
