"""Every ready definition on damaged copies of its data: a missing column, a broken picture, an empty answer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from public_data import PUBLIC, picture, write, write_frames

from vtc.eval.tasks.reading.definition import list_definitions
from vtc.eval.tasks.reading.read_benchmarks import load_benchmarks
from vtc.eval.tasks.reading.unusable_rows import check_media

DATA = {"seed_image": "seed"}  # the others lie under their own names
VIDEO = ("videomme", "mvbench")
FILMS = {
    "videomme": ("Video-MME/data/fFjv93ACGo8", "Video-MME/data/N1cdUjctpG8"),
    "mvbench": ("MVBench/star/Charades_segment/ZS9XR.mp4", "MVBench/clevrer/video_validation/video_1.mp4"),
}
NAMES = sorted(list_definitions())
# columns beside question and answer without which there is no question
NEEDED = {
    "ai2d": {"options", "image"}, "chartqa": {"type", "image"}, "gqa": {"id", "imageId"},
    "docvqa": {"questionId", "docId", "image"}, "mme": {"question_id", "category", "image"},
    "mmbench_en": {*"ABCD", "index", "hint", "category", "image"}, "mmstar": {"index", "l2_category", "image"},
    "mvbench": {"video", "candidates"}, "ocrbench": {"question_type", "image"},
    "pope": {"question_id", "category", "image", "image_source"}, "realworldqa": {"image"},
    "scienceqa_img": {"choices", "hint", "subject", "image"}, "textvqa": {"question_id", "image_id", "image"},
    "seed": {"question_id", "data_type", "data_id", "image", *(f"choice_{c}" for c in "abcd")},
    "videomme": {"videoID", "question_id", "options", "duration"},
    "vizwiz": {"question_id", "category", "image"},
    "vqav2": {"question_id", "image_id", "image", "answer_type", "multiple_choice_answer"},
}  # fmt: skip
NEEDED |= {"mmbench_cn": NEEDED["mmbench_en"], "seed_image": {*NEEDED["seed"], "question_type_id"}}
PEOPLE = ("textvqa", "vizwiz", "vqav2", "docvqa")  # the answer is one of several, in the column `answers`


def answer_of(name: str) -> str:
    return "answers" if name in PEOPLE else "answer"


def damaged(root: Path, name: str, damage: Callable[[dict[str, Any]], None], at: int | None = None) -> Path:
    """A copy whose rows, or the one at a place, are damaged; in the file with the questions."""
    data = DATA.get(name, name)
    files = copy.deepcopy(PUBLIC[data].files)
    rows = next(iter(files.values()))
    for row in rows if at is None else [rows[at]]:
        damage(row)
    write(root, data, files)
    for film in FILMS.get(name, ()):
        write_frames(root / film, 3)
    return root


def file_of(name: str) -> str:
    return next(iter(PUBLIC[DATA.get(name, name)].files)).rpartition("/")[2]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_column_is_named_with_its_file(name: str, tmp_path: Path) -> None:
    """All others may be missing."""
    public = PUBLIC[DATA.get(name, name)]
    whole = load_benchmarks([name], damaged(tmp_path / "whole", name, lambda row: None))
    needed = {*NEEDED[name], "question", answer_of(name)}
    for column in next(iter(public.files.values()))[0]:
        place = tmp_path / column
        types = public.types.pop(column, None)
        try:
            damaged(place, name, lambda row, column=column: row.pop(column, None))
        finally:
            public.types.update({column: types} if types is not None else {})
        if column not in needed:
            assert load_benchmarks([name], place).questions == whole.questions, column
            continue
        with pytest.raises((ValueError, FileNotFoundError)) as stopped:
            load_benchmarks([name], place)
        message = str(stopped.value)
        assert f"'{column}" in message  # or a part of it: 'answers.answer'
        assert file_of(name) in message
        assert "\n" not in message


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_answer_is_named_or_skipped(name: str, tmp_path: Path) -> None:
    column = answer_of(name)

    def damage(row: dict[str, Any]) -> None:
        row[column] = [] if isinstance(row[column], list) else None

    damaged(tmp_path, name, damage, at=0)
    with pytest.raises(ValueError, match=f"{file_of(name)} row 1: .*answer"):
        load_benchmarks([name], tmp_path)
    left = load_benchmarks([name], tmp_path, on_error="skip")
    assert file_of(name) in left.skipped[0]
    assert "row 1" in left.skipped[0]
    assert left.questions


@pytest.mark.parametrize("name", sorted(set(NAMES) - {*VIDEO}))
def test_a_picture_that_does_not_decode_is_named_or_skipped(name: str, tmp_path: Path) -> None:
    def damage(row: dict[str, Any]) -> None:
        torn = picture(1)[:45]
        if isinstance(row["image"], list):
            row["image"][-1]["bytes"] = torn
        elif isinstance(row["image"], dict):
            row["image"]["bytes"] = torn
        else:
            row["image"] = torn

    if name == "gqa":  # its pictures are a table of their own
        files = copy.deepcopy(PUBLIC[name].files)
        place, pictures = list(files.items())[1]
        damage(pictures[0])
        write(tmp_path, name, files)
        file = place.rpartition("/")[2]
    else:
        damaged(tmp_path, name, damage, at=0)
        file = file_of(name)
    tasks = load_benchmarks([name], tmp_path)
    with pytest.raises(ValueError, match=f"{file} row 1.* cannot be read as an image") as stopped:
        check_media(tasks)
    assert "\n" not in str(stopped.value)
    assert tasks.questions[0].question_id in str(stopped.value)
    left = check_media(tasks, "skip")
    assert 0 < len(left.questions) < len(tasks.questions)
    assert "row 1" in left.skipped[0]


@pytest.mark.parametrize("name", VIDEO)
def test_a_frame_that_does_not_decode_is_named_or_skipped(name: str, tmp_path: Path) -> None:
    damaged(tmp_path, name, lambda row: None)
    frame = tmp_path / FILMS[name][0] / "1.png"
    frame.write_bytes(frame.read_bytes()[:40])
    tasks = load_benchmarks([name], tmp_path)
    with pytest.raises(ValueError, match=r"1\.png") as stopped:
        check_media(tasks)
    assert tasks.questions[0].question_id in str(stopped.value)
    left = check_media(tasks, "skip")
    assert [q.question_id for q in left.questions] == [tasks.questions[1].question_id]
    (tmp_path / FILMS[name][0]).rename(tmp_path / "elsewhere")
    with pytest.raises((ValueError, FileNotFoundError), match=f"{file_of(name)} row 1: no such video"):
        load_benchmarks([name], tmp_path)
