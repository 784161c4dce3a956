"""Labelled pictures: a folder per class, or parquet files with an image and a label in each row."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.eval.tasks.media.media_store import Media, MediaStore
from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.tasks.reading.data_files import read_files
from vtc.pruners.untrusted_json import parse_json

TASK, METRIC = "classification", "label"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
MAPPINGS = ("classes.json", "classes.txt")
HASHED_BYTES = 64 << 20  # of one file; of a larger one the size and time of change
LAYOUTS = "it should have a folder of images for each class, or .parquet files with the columns image and label"


@dataclass(frozen=True)
class _File:
    """Names an image file when it is asked for."""

    path: Path

    def __call__(self) -> Media:
        return self.path


@dataclass(frozen=True)
class _Picture:
    name: str
    label: str
    read: Callable[[], Media]
    place: str


def _class_folders(folder: Path) -> Iterator[_Picture]:
    for kind in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "_"))):
        files = sorted(p for p in kind.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise ValueError(f"the class {kind.name!r} is empty: no image ({', '.join(SUFFIXES)}) in {kind}")
        for file in files:
            yield _Picture(file.relative_to(folder).as_posix(), kind.name, _File(file), str(file))


def _label(value: Any, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ValueError(f"{place}: the label {value!r} is neither a class's name nor its number")
    return str(value)


def _parquet(files: list[Path], folder: Path) -> Iterator[_Picture]:
    for row in read_files(files, folder, "image", {"image", "label"}):
        if row.problem or not row.media:
            raise ValueError(f"{row.place}: {row.problem or 'no image'}")
        name = str(row.values.get("image_id", f"{row.file}-{row.number}"))
        yield _Picture(name, _label(row.values["label"], row.place), row.media[0], row.place)


def _fingerprint(pictures: list[_Picture], files: list[Path]) -> str:
    digest = hashlib.sha256(json.dumps([(p.name, p.label) for p in pictures]).encode())
    for file in files:
        stat = file.stat()
        small = stat.st_size <= HASHED_BYTES
        digest.update(file.read_bytes() if small else f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def load_pictures(folder: Path) -> TaskSet:
    """Read a labelled folder; nothing is decoded yet.

    Parameters
    ----------
    folder : Path
        ``<class>/**/*.png`` (or another common format) as torchvision's and timm's ``ImageFolder`` have it, or
        ``*.parquet`` with the columns image (encoded bytes, a struct with them, or a path) and label (a name, or the
        number of the model's output), and image_id if you like.

    Returns
    -------
    TaskSet
        A question per picture, whose answer is its class.

    Raises
    ------
    ValueError
        For a folder without classes, a class without images, a repeated image_id or a row that can't be used; the file
        or row is named.
    """
    tables = sorted(folder.glob("*.parquet"))
    pictures = list(_parquet(tables, folder) if tables else _class_folders(folder))
    if not pictures:
        raise ValueError(f"no labelled pictures in {folder}: {LAYOUTS}")
    twice = [name for name, n in Counter(p.name for p in pictures).items() if n > 1]
    if twice:
        raise ValueError(f"{folder}: image_id {twice[0]!r} occurs more than once")
    files = tables or [p.read.path for p in pictures if isinstance(p.read, _File)]
    questions = tuple(Question(p.name, TASK, p.name, "", p.label, metric=METRIC) for p in pictures)
    images = MediaStore({p.name: p.read for p in pictures}, {p.name: p.place for p in pictures})
    name = folder.resolve().name
    return TaskSet(name, "", _fingerprint(pictures, files), (TASK,), questions, images)


def class_names(tasks: TaskSet) -> list[str]:
    """The classes that occur, sorted: numbers by value, names by their letters."""
    found = {q.answer for q in tasks.questions}
    return sorted(found, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))


def read_mapping(folder: Path) -> dict[str, Any]:
    """What ``classes.json`` (class to the number of its output, or to its name in a prompt) or ``classes.txt`` says.

    ``classes.txt`` has a class on each line, in the order of the model's outputs. Empty without either.

    Raises
    ------
    ValueError
        For a file that is no such mapping.
    """
    path = next((folder / name for name in MAPPINGS if (folder / name).is_file()), None)
    if path is None:
        return {}
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        names = [line.strip() for line in text.splitlines() if line.strip()]
        found: Any = {name: i for i, name in enumerate(names)}
        if len(found) < len(names):
            raise ValueError(f"{path} names a class twice")
        return found
    try:
        found = parse_json(text)
    except ValueError as e:
        raise ValueError(f"{path} is not valid JSON: {e}") from None
    if not isinstance(found, dict) or any(isinstance(v, bool) or not isinstance(v, int | str) for v in found.values()):
        raise ValueError(f'{path} must be like {{"cat": 281}} (outputs) or {{"n02123045": "tabby cat"}} (names)')
    return found
