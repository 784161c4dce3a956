"""The plain form of an evaluation set: ``images.parquet`` and ``questions.parquet`` in a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vtc.eval.tasks.media.media_store import MediaStore
from vtc.eval.tasks.questions import Question, TaskSet
from vtc.pruners.untrusted_json import parse_json

from .unusable_rows import Problems

IMAGE_COLUMNS = ("image_id", "image")
QUESTION_COLUMNS = ("question_id", "task", "image_id", "question", "answer")


def _check(path: Path, columns: Sequence[str]) -> None:
    """Refuse what is no readable table with these columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path} (an evaluation set has images.parquet and questions.parquet)")
    try:
        have = pq.read_schema(path).names
        missing = [c for c in columns if c not in have]
        if missing:
            raise ValueError(
                f"{path} has no column {missing[0]!r}; it needs {', '.join(columns)} and has {', '.join(have)}"
            )
    except pa.ArrowInvalid as e:
        raise _unreadable(path, e) from None


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is not a readable parquet file: {str(error).splitlines()[0]}")


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check(path, columns)
    try:
        with pq.ParquetFile(path) as file:  # read_table would import pandas
            return file.read(columns=list(columns)).to_pylist()
    except pa.ArrowInvalid as e:
        raise _unreadable(path, e) from None


def _about(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as e:
        raise ValueError(f"{path} is not valid JSON: {e}") from None
    return found if isinstance(found, dict) else {}


def _files(folder: Path) -> tuple[Path, Path]:
    """The tables of images and questions; refuses a folder with neither."""
    files = (folder / "images.parquet", folder / "questions.parquet")
    if not any(file.is_file() for file in files):
        other = next((f"; {p.name} must be called .yaml" for p in sorted(folder.glob("*.yml"))), "")
        raise FileNotFoundError(
            f"{folder} holds no evaluation set: put images.parquet and questions.parquet there, or a definition such "
            f"as task.yaml beside its data (docs/own-questions.md){other}"
        )
    return files


def task_column(folder: Path) -> list[str]:
    """The tasks that a folder's questions name, in their order; of the pictures only the table's schema is read."""
    images, questions = _files(folder)
    _check(images, IMAGE_COLUMNS)
    _check(questions, QUESTION_COLUMNS)
    return list(dict.fromkeys(str(row["task"]) for row in _table(questions, ("task",))))


def read_parquet_set(folder: Path, on_error: str = "stop") -> TaskSet:
    """See ``load.load_tasks``."""
    files = _files(folder)
    problems = Problems(on_error)
    readers, places = {}, {}
    for number, row in enumerate(_table(files[0], IMAGE_COLUMNS), 1):
        data, place = (
            row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"],
            f"{files[0]} row {number}",
        )
        if not isinstance(data, bytes):
            problems.add(place, f"the image must be encoded bytes, it is {data!r:.40}")
            continue
        readers[str(row["image_id"])] = partial(bytes, data)
        places[str(row["image_id"])] = place
    images = MediaStore(readers, places)
    questions = []
    seen: set[str] = set()
    for row in _table(files[1], QUESTION_COLUMNS):
        name, task, image, words, answer = (str(row[column]) for column in QUESTION_COLUMNS)
        q = Question(name, task, image, words, answer)
        if q.question_id in seen:
            raise ValueError(f"{files[1]}: question_id {q.question_id!r} occurs more than once")
        seen.add(q.question_id)
        if q.image_id in images:
            questions.append(q)
        else:
            reason = f"question {q.question_id!r} is about image {q.image_id!r}, which {files[0]} lacks"
            problems.add(str(files[1]), reason, q.task)
    if not questions:
        first = f"; the first problem: {problems.skipped[0]}" if problems.skipped else ""
        raise ValueError(f"{files[1]} has no questions{' that can be used' if first else ''}{first}")
    about = _about(folder / "dataset.json")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    name, version = str(about.get("name", folder.name)), str(about.get("version", "unversioned"))
    present = dict.fromkeys(q.task for q in questions)
    listed = about.get("tasks", {})
    tasks = tuple(dict.fromkeys([*(t for t in listed if t in present), *present]))
    skipped = tuple(problems.skipped)
    return TaskSet(name, version, digest.hexdigest()[:16], tasks, tuple(questions), images, skipped=skipped)


def save_tasks(
    folder: str | Path, images: Mapping[str, bytes], questions: Iterable[Question], version: str = "1"
) -> Path:
    """Write an evaluation set in the plain format that ``load_tasks`` reads; its answers are scored by "exact".

    Parameters
    ----------
    folder : str or Path
        Made where it is not there.
    images : mapping
        Encoded pictures (PNG, JPEG, ...) by image id.
    questions : iterable of Question
        About one image each.
    version : str
        Of the set.

    Raises
    ------
    ValueError
        For a question about an image that is not among `images`; nothing is written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    questions = list(questions)
    for q in questions:
        if q.image_id not in images:
            raise ValueError(f"question {q.question_id!r} is about image {q.image_id!r}, which is not among the images")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image_id": list(images), "image": list(images.values())}), folder / "images.parquet")
    rows = [{c: getattr(q, c) for c in QUESTION_COLUMNS} for q in questions]
    pq.write_table(pa.Table.from_pylist(rows), folder / "questions.parquet")
    (folder / "dataset.json").write_text(json.dumps({"name": folder.name, "version": version}))
    return folder
