"""The rows of an lmms-eval task as questions: its own prompts, images and answers."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from vtc.eval.tasks.media.images import as_rgb, no_torn_files
from vtc.eval.tasks.media.media_store import Media
from vtc.eval.tasks.media.video import Clip
from vtc.eval.tasks.questions import Question

from .task_lookup import Source


def docs_of(task: Any) -> Any:
    """The rows that a task is evaluated on."""
    return task.eval_docs


def refuse(task: Any) -> None:
    """Raise ValueError for a task that is more than questions with one greedy answer each."""
    name, options = task.config.task, task.config.generation_kwargs or {}
    instead = "run it with lmms_eval --model vtc"
    if task.OUTPUT_TYPE != "generate_until" or not hasattr(task, "doc_to_messages"):
        raise ValueError(f"lmms-eval's task {name!r} is of the type {task.OUTPUT_TYPE}, not generate_until: {instead}")
    if options.get("do_sample") or (options.get("temperature") or 0) > 0 or (options.get("num_beams") or 1) > 1:
        raise ValueError(
            f"lmms-eval's task {name!r} samples or searches with beams, vtc bench decodes greedily: {instead}"
        )


def content_of(task: Any, doc: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], str]:
    """The images or videos of a row and the text behind them, from the task's chat messages.

    Raises
    ------
    ValueError
        For several turns, and for text in front of an image.
    """
    messages = task.doc_to_messages(doc)
    parts = list(messages[0]["content"]) if len(messages) == 1 else []
    if not parts or [p["type"] for p in parts].index("text") != len(parts) - 1:
        raise ValueError(
            f"lmms-eval's task {task.config.task!r} has several turns or text between images, which vtc bench has not: "
            "run it with lmms_eval --model vtc"
        )
    if len(parts) > 2 and any(p["type"] == "video" for p in parts):
        raise ValueError(
            "has a video and more beside it, vtc bench asks about one video or about pictures: run it with lmms_eval "
            "--model vtc"
        )
    return parts[:-1], parts[-1]["text"]


def _clip(url: Any) -> Clip:
    if isinstance(url, Mapping):
        path = url.get("url") or url.get("path")
        return Clip(Path(str(path)), url.get("video_start"), url.get("video_end"))
    return Clip(Path(str(url)))


def media_id(part: Mapping[str, Any]) -> str:
    """The same for the same picture: a hash of its pixels, or the name of its file."""
    value = part["url"]
    if part["type"] not in ("image", "video"):
        raise ValueError(f"has {part['type']}, vtc bench knows images and videos")
    if not isinstance(value, Image.Image):
        return str(_clip(value) if part["type"] == "video" else value)
    pixels = as_rgb(value)
    return hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()[:20]


def read_media(source: Source, doc_id: int, item: int) -> Media:
    """One image, as PNG, or video of a row."""
    task = source.load()
    part = content_of(task, docs_of(task)[doc_id])[0][item]
    value = part["url"]
    if part["type"] == "video":
        return _clip(value)
    if not isinstance(value, Image.Image):
        return Path(value)
    data = io.BytesIO()
    as_rgb(value).save(data, "PNG", compress_level=1)
    return data.getvalue()


def references_of(task: Any, doc: Mapping[str, Any]) -> tuple[str, ...]:
    """All answers that the task names as right."""
    target = task.doc_to_target(doc)
    if isinstance(target, int) and task.config.doc_to_choice is not None:
        target = task.doc_to_choice(doc)[target]
    return tuple(map(str, target)) if isinstance(target, list | tuple) else (str(target),)


class Reader:
    """Makes questions of one task's rows and keeps what reads their media."""

    def __init__(self, source: Source, task: Any):
        refuse(task)
        self.source, self.task = source, task
        self.readers: dict[str, partial[Media]] = {}
        self.places: dict[str, str] = {}

    def question(self, doc_id: int) -> Question | None:
        """The question of a row; None if it has no image.

        Raises
        ------
        ValueError
            For rows that can't be read; the message names the row.
        """
        place = f"{self.task.config.task} row {doc_id}"
        try:
            with no_torn_files():  # lmms-eval's own modules allow them for the whole process
                doc = docs_of(self.task)[doc_id]
                parts, text = content_of(self.task, doc)
                ids = tuple(map(media_id, parts))
            references = references_of(self.task, doc)
        except (OSError, SyntaxError, KeyError, ValueError) as error:  # SyntaxError: of Pillow
            raise ValueError(f"lmms-eval's task {place}: {error}") from error
        for item, name in enumerate(ids):
            self.readers.setdefault(name, partial(read_media, self.source, doc_id, item))
            self.places.setdefault(name, place)
        if not ids:
            return None
        category = doc.get("category")
        return Question(
            question_id=f"{self.source.task}-{doc_id}",
            task=self.source.task,
            image_id=ids[0] if len(ids) == 1 else hashlib.sha256("".join(ids).encode()).hexdigest()[:20],
            question=text,
            answer=references[0] if references else "",
            references=references,
            metric=self.source.metric,
            category=category if isinstance(category, str) else "",
            media=ids,
            kind="video" if parts[0]["type"] == "video" else "image",
        )
