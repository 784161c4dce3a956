"""From a row of a data set to a question, as a task definition says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtc.eval.tasks.media.media_store import Media
from vtc.eval.tasks.media.video import Clip
from vtc.eval.tasks.metrics import metric
from vtc.eval.tasks.questions import Question

from .data_files import Row
from .definition import Definition, Rate
from .templates import Field, empty, lettered
from .unusable_rows import Problems

ENDINGS = ("", ".mp4", ".mkv", ".webm", ".avi", ".mov", ".MP4")


@dataclass(frozen=True)
class _Given:
    """A video that is there already: nothing to read before its frames are asked for."""

    clip: Clip

    def __call__(self) -> Media:
        return self.clip


@dataclass
class Reading:
    """What is read so far."""

    data_dir: Path | None
    problems: Problems
    questions: list[Question] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    media: dict[str, Callable[[], Media]] = field(default_factory=dict)
    media_places: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def keep(self, media_id: str, read: Callable[[], Media], place: str) -> str:
        """Note where a medium is read; of several rows with the same one the first."""
        self.media.setdefault(media_id, read)
        self.media_places.setdefault(media_id, place)
        return media_id

    @property
    def clips(self) -> list[tuple[Any, ...]]:
        """What is meant of each video, by its id: its answers depend on it."""
        clips = ((i, read.clip) for i, read in self.media.items() if isinstance(read, _Given))
        return [(i, clip.start, clip.end, clip.fps) for i, clip in clips]


def _seconds(f: Field | None, row: Row, given: Mapping[str, Any]) -> float | None:
    value = f.value(row.values, **given) if f else None
    try:
        return None if value is None or empty(value) else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"video: clip: {value!r} is no time in seconds") from None


def _fps(rate: Rate | None, row: Row, given: Mapping[str, Any]) -> float | None:
    """Frames per second as a definition or a row says; None if the row leaves it open."""
    value = rate.value(row.values, **given) if isinstance(rate, Field) else rate
    if value is None or empty(value):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = 0.0
    if not 0 < found < float("inf"):
        raise ValueError(f"fps: {value!r} is no number of frames per second, which is above 0")
    return found


def _video(d: Definition, folder: Path, row: Row, given: Mapping[str, Any], reading: Reading) -> str:
    """Find a question's video."""
    tried = []
    for candidate in d.video:
        name = candidate.path.string(row.values, **given)
        for ending in ENDINGS:
            path = folder / (name + ending)
            if name and path.exists():
                start, end = (_seconds(f, row, given) for f in (candidate.start, candidate.end))
                rate = d.fps if candidate.fps is None else candidate.fps
                clip = Clip(path, start, end, _fps(rate, row, given))
                part = f"#{clip.start}-{clip.end}" if candidate.start else ""
                return reading.keep(f"{d.task}/{name}{part}", _Given(clip), row.place)
        tried.append(name)
    raise FileNotFoundError(f"no such video in {folder}: {' or '.join(tried)}")


def _digest(read: Callable[[], Media]) -> str:
    media = read()
    data = media if isinstance(media, bytes) else media.read_bytes() if isinstance(media, Path) else b""
    return hashlib.sha256(data).hexdigest()[:16]


def _media(d: Definition, folder: Path, row: Row, given: Mapping[str, Any], reading: Reading) -> tuple[str, list[str]]:
    """The id of what a row is about, and those of its images in order."""
    if d.video:
        video = _video(d, folder, row, given, reading)
        return video, [video]
    named = d.image_id.string(row.values, **given) if d.image_id else None
    if d.images:
        image_id = f"{d.task}/{named}"
        if image_id not in reading.media:
            raise ValueError(f"is about image {named!r}, which the table of images lacks")
        return image_id, [image_id]
    if not row.media:
        raise ValueError(f"has no image in {d.image!r}")
    if named == "":
        raise ValueError("image_id is empty")
    base = f"{d.task}/{named or '+'.join(_digest(read) for read in row.media)}"
    if not row.listed:
        return base, [reading.keep(base, row.media[0], row.place)]
    return base, [reading.keep(f"{base}#{i}", read, row.place) for i, read in enumerate(row.media)]


def _options(d: Definition, row: Row, given: Mapping[str, Any]) -> tuple[str, ...]:
    values = [f.value(row.values, **given) for f in d.options]
    if len(values) == 1 and isinstance(values[0], Sequence) and not isinstance(values[0], str):
        values = list(values[0])
    while values and empty(values[-1]):  # questions with fewer options than there are columns
        values.pop()
    if any(map(empty, values)):
        raise ValueError(f"an option is empty before the last one: {values}")
    return tuple(str(v).strip() for v in values)


def _references(d: Definition, row: Row, given: Mapping[str, Any]) -> tuple[str, ...]:
    value = d.references.value(row.values, **given) if d.references else None
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return tuple(str(v) for v in values if not empty(v))


def question_of(d: Definition, folder: Path, row: Row, reading: Reading) -> Question | None:
    """One row's question, None if the definition passes over it.

    Raises
    ------
    ValueError, FileNotFoundError
        For what is missing, empty, or no answer that the metric could score.
    """
    given: dict[str, Any] = {"vars": d.vars, "file": row.file, "number": row.number}

    def text(f: Any) -> str:
        return f.string(row.values, **given) if f else ""

    if d.where and text(d.where).lower() in ("false", "0", ""):
        return None
    if d.answer.text in row.values and isinstance(row.values[d.answer.text], list):
        raise ValueError(f"answer {d.answer.text!r} is a list; say it as references, and one of them as the answer")
    options, references, answer = _options(d, row, given), _references(d, row, given), text(d.answer)
    if not answer:
        raise ValueError("the answer is empty (is this a split whose answers are held back?)")
    given["lettered"] = lettered(options)
    prompt = d.prompt.value(row.values, **given)
    if empty(prompt):
        raise ValueError("the question is empty")
    image_id, media = _media(d, folder, row, given, reading)
    kind = text(d.kind) or ("video" if d.video else "image")
    if kind not in ("image", "video", "frames"):
        raise ValueError(f"kind must be image, video or frames, it is {kind!r}")
    question = Question(
        question_id=f"{d.task}/{text(d.id) or row.number}",
        task=d.task,
        image_id=image_id,
        question=str(prompt),
        answer=answer,
        references=references or (answer,),
        metric=d.metric,
        options=options,
        group=text(d.group),
        category=text(d.category),
        media=tuple(media),
        kind=kind,
        fps=_fps(d.fps, row, given) if kind == "frames" else None,
    )
    metric(d.metric).check(question)
    return question
