"""Evaluation sets: two parquet files of images and questions, and a fixed choice of a part of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from .images import open_image

IMAGE_COLUMNS = ("image_id", "image")
QUESTION_COLUMNS = ("question_id", "task", "image_id", "question", "answer")


@dataclass(frozen=True)
class Question:
    """One question about one image."""

    question_id: str
    task: str
    image_id: str
    question: str
    answer: str


@dataclass(frozen=True)
class TaskSet:
    """Questions and the encoded images they are about.

    ``fingerprint`` identifies the files' content, ``limit`` says how many questions a task has at most (None: all).
    """

    name: str
    version: str
    fingerprint: str
    tasks: tuple[str, ...]
    questions: tuple[Question, ...] = field(repr=False)
    images: Mapping[str, bytes] = field(repr=False)
    limit: int | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Number of questions of each task."""
        found = Counter(q.task for q in self.questions)
        return {task: found[task] for task in self.tasks}

    def image(self, image_id: str) -> Image.Image:
        """Decode one image."""
        return open_image(self.images[image_id], f"image {image_id} of {self.name}")

    def groups(self) -> list[list[Question]]:
        """The questions of each image."""
        found: dict[str, list[Question]] = {}
        for q in self.questions:
            found.setdefault(q.image_id, []).append(q)
        return list(found.values())

    def subset(self, tasks: Sequence[str] | None = None, limit: int | None = None) -> TaskSet:
        """The same questions on every machine and in every run.

        Images are visited in the order of a hash of their id, and each gives all its questions until a task has `limit`
        of them: few images serve many questions, and a smaller `limit` is a subset of a larger one.

        Raises
        ------
        ValueError
            For an unknown task (the known ones are named) or a `limit` below 1.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit={limit} is out of range: it is the number of questions per task, at least 1")
        wanted = dict.fromkeys(tasks or self.tasks)
        for task in wanted:
            if task not in self.tasks:
                raise ValueError(f"unknown task {task!r}. There is: {', '.join(self.tasks)}")
        left = {task: limit if limit is not None else len(self.questions) for task in wanted}
        chosen = []
        for group in sorted(self.groups(), key=lambda g: hashlib.sha256(g[0].image_id.encode()).digest()):
            for q in group:
                if left.get(q.task, 0) > 0:
                    left[q.task] -= 1
                    chosen.append(q)
        return replace(self, tasks=tuple(wanted), questions=tuple(chosen), limit=limit)


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
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
        return pq.read_table(path, columns=list(columns)).to_pylist()
    except pa.ArrowInvalid as e:
        raise ValueError(f"{path} is not a readable parquet file: {str(e).splitlines()[0]}") from None


def _about(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as e:
        raise ValueError(f"{path} is not valid JSON: {e}") from None
    return found if isinstance(found, dict) else {}


def load_tasks(folder: str | Path) -> TaskSet:
    """Read an evaluation set.

    Parameters
    ----------
    folder : str or Path
        Holds ``images.parquet`` (image_id, image: encoded bytes or a struct with them), ``questions.parquet``
        (question_id, task, image_id, question, answer) and, if you like, ``dataset.json`` with "name", "version" and
        "tasks" (their order).

    Raises
    ------
    FileNotFoundError, ValueError
        For a missing file or column, a repeated question_id or a question about an image that is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    files = (folder / "images.parquet", folder / "questions.parquet")
    images: dict[str, bytes] = {}
    for row in _table(files[0], IMAGE_COLUMNS):
        data = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
        images[str(row["image_id"])] = data
    questions = tuple(
        Question(**{c: str(row[c]) for c in QUESTION_COLUMNS}) for row in _table(files[1], QUESTION_COLUMNS)
    )
    if not questions:
        raise ValueError(f"{files[1]} has no questions")
    twice = [i for i, n in Counter(q.question_id for q in questions).items() if n > 1]
    if twice:
        raise ValueError(f"{files[1]}: question_id {twice[0]!r} occurs more than once")
    for q in questions:
        if q.image_id not in images:
            raise ValueError(
                f"{files[1]}: question {q.question_id!r} is about image {q.image_id!r}, which {files[0]} lacks"
            )
    about = _about(folder / "dataset.json")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    name, version = str(about.get("name", folder.name)), str(about.get("version", "unversioned"))
    present = dict.fromkeys(q.task for q in questions)
    listed = about.get("tasks", {})
    tasks = tuple(dict.fromkeys([*(t for t in listed if t in present), *present]))
    return TaskSet(name, version, digest.hexdigest()[:16], tasks, questions, images)


def save_tasks(
    folder: str | Path, images: Mapping[str, bytes], questions: Iterable[Question], version: str = "1"
) -> Path:
    """Write an evaluation set of your own in the format that ``load_tasks`` reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image_id": list(images), "image": list(images.values())}), folder / "images.parquet")
    rows = [{c: getattr(q, c) for c in QUESTION_COLUMNS} for q in questions]
    pq.write_table(pa.Table.from_pylist(rows), folder / "questions.parquet")
    (folder / "dataset.json").write_text(json.dumps({"name": folder.name, "version": version}))
    return folder
