"""Task definitions: a small YAML file that says how to read a data set, what to ask and how to score it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vtc.eval.files.yaml_file import read_yaml

from .templates import Field

READY = Path(__file__).resolve().parent / "definitions"
_FIELDS = ("prompt", "answer", "id", "image_id", "references", "category", "group", "where", "kind")
_TEXTS = ("task", "metric", "title", "hub", "config", "split", "revision", "image")
_NUMBERS = ("max_new_tokens", "num_frames")
Rate = float | Field  # frames per second: a number, or what a row says
_REQUIRED = ("task", "metric", "prompt", "answer")


@dataclass(frozen=True)
class ImageTable:
    """A second table, which holds the images: its hub configuration and files, and its two columns."""

    key: str
    image: str
    config: str | None = None
    split: str | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class VideoPath:
    """Where a question's video may lie, and what is its part (start and end in seconds) and its folder's frame rate."""

    path: Field
    start: Field | None = None
    end: Field | None = None
    fps: Rate | None = None


@dataclass(frozen=True)
class Definition:
    """A task definition; every ``Field`` is a column's name or a Jinja template over a row's columns.

    Attributes
    ----------
    path : Path
        The YAML file.
    task, title : str
        The task's name, and what it is in a few words.
    metric : str
        See ``vtc.eval.tasks.metrics``.
    hub, config, split, revision : str
        The data set's id on the hub, its configuration, split and revision. They also say which files of a local copy
        are meant.
    files : tuple of str
        Patterns of the data files in a local folder (parquet, jsonl or json), instead of the usual ones.
    prompt, answer : Field
        The text for the model, and the right answer.
    id, image_id : Field
        Names of the question and of what it is about; else rows are numbered and images named by their content.
    image : str
        The image column: encoded bytes, structs with bytes or a path, names of files, or a list of any of them.
    images : ImageTable
        Where the images are a table of their own: `image_id` is looked up there.
    video : tuple of VideoPath
        Where the video lies; the first that exists is taken.
    references, options : Field, tuple of Field
        All accepted answers (a list column); the options' texts (a list column, or one field per option).
    category, group, where, kind : Field
        See ``Question``; rows whose `where` is "False" are passed over.
    max_new_tokens, num_frames : int
        What the benchmark's authors generate and look at.
    fps : float or Field
        Frames per second of folders of frames, and of the frames of a list; a video's own says more.
    vars : mapping
        Constants for the templates.
    """

    path: Path
    task: str
    metric: str
    prompt: Field
    answer: Field
    title: str = ""
    hub: str | None = None
    config: str | None = None
    split: str = "test"
    revision: str | None = None
    files: tuple[str, ...] = ()
    id: Field | None = None
    image: str | None = None
    image_id: Field | None = None
    images: ImageTable | None = None
    video: tuple[VideoPath, ...] = ()
    references: Field | None = None
    options: tuple[Field, ...] = ()
    category: Field | None = None
    group: Field | None = None
    where: Field | None = None
    kind: Field | None = None
    max_new_tokens: int | None = None
    num_frames: int | None = None
    fps: Rate | None = None
    vars: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_fields(self) -> list[Field]:
        """Every field that is said, those of the videos aside."""
        rate = [self.fps] if isinstance(self.fps, Field) else []
        return [f for name in _FIELDS if (f := getattr(self, name)) is not None] + list(self.options) + rate


def _texts(value: Any, key: str) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise ValueError(f"{key} must be a text or a list of texts, it is {value!r}")
    return tuple(values)


def _image_table(value: Any) -> ImageTable:
    known = [f.name for f in fields(ImageTable)]
    if not isinstance(value, dict) or not {"key", "image"} <= set(value) or set(value) - set(known):
        raise ValueError(f"images must be a mapping with key and image (and {', '.join(known[2:])}), it is {value!r}")
    return ImageTable(**{**value, "files": _texts(value["files"], "images: files") if "files" in value else ()})


def _rate(value: Any, key: str) -> Rate:
    if isinstance(value, str) and value.strip():
        return Field(key, value)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf"):
        return float(value)
    raise ValueError(f"{key} must be a number above 0, a column or a template, it is {value!r}")


def _video_path(value: Any) -> VideoPath:
    if isinstance(value, str):
        return VideoPath(Field("video", value))
    if not isinstance(value, dict) or not isinstance(value.get("path"), str) or set(value) - {"path", "clip", "fps"}:
        raise ValueError(f"video must be a path or a mapping with path (and clip, fps), it is {value!r}")
    clip = value.get("clip", [])
    if not isinstance(clip, list) or len(clip) not in (0, 2):
        raise ValueError(f"video: clip must be [start, end], it is {clip!r}")
    start, end = (Field("video: clip", str(c)) for c in clip) if clip else (None, None)
    rate = _rate(value["fps"], "video: fps") if "fps" in value else None
    return VideoPath(Field("video", value["path"]), start, end, rate)


def _parsed(found: Any, path: Path) -> Definition:
    if not isinstance(found, dict):
        raise ValueError("a definition is a mapping of keys to values")
    known = [f.name for f in fields(Definition) if f.name != "path"]
    for key in found:
        if key not in known:
            raise ValueError(f"unknown key {key!r}. There is: {', '.join(known)}")
    for key in _REQUIRED:
        if key not in found:
            raise ValueError(f"{key!r} is missing; a definition needs {', '.join(_REQUIRED)}")
    values: dict[str, Any] = {}
    for key, value in found.items():
        if key in _FIELDS or key in _TEXTS:
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{key} must be a text, it is {value!r}")
            values[key] = Field(key, value) if key in _FIELDS else value
        elif key in _NUMBERS:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{key} must be a whole number from 1 on, it is {value!r}")
            values[key] = value
        elif key == "fps":
            values[key] = _rate(value, key)
        elif key == "vars":
            values[key] = dict(value)
        elif key == "files":
            values[key] = _texts(value, key)
        elif key == "options":
            values[key] = tuple(Field(key, text) for text in _texts(value, key))
        elif key == "images":
            values[key] = _image_table(value)
        else:
            values[key] = tuple(_video_path(v) for v in (value if isinstance(value, list) else [value]))
    return Definition(path=path, **values)


def _check(definition: Definition) -> None:
    from vtc.eval.tasks.metrics import metric

    metric(definition.metric)
    for f in definition.all_fields:
        f.check()
    if definition.image and definition.video:
        raise ValueError("image and video can't both be said")
    if not (definition.image or definition.video or definition.images):
        raise ValueError("one of image, images and video has to be said")
    if definition.fps is not None and not (definition.video or definition.kind):
        raise ValueError("fps is of a video's frames: say video, or kind where an image column holds frames")
    if definition.images and not definition.image_id:
        raise ValueError("with images, image_id has to say which of them a question is about")


def read_definition(path: str | Path) -> Definition:
    """Read a definition.

    Raises
    ------
    FileNotFoundError, ValueError
        For a missing file, for what is no definition, an unknown key or metric, a template that doesn't parse.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such task definition: {path}")
    found = read_yaml(path)
    try:
        definition = _parsed(found, path)
        _check(definition)
    except (ValueError, TypeError) as e:
        raise ValueError(f"{path}: {e}") from None
    return definition


def list_definitions() -> list[str]:
    """Names of the ready definitions."""
    return sorted(path.stem for path in READY.glob("*.yaml"))


def definition(name: str) -> Definition:
    """A ready definition by its name, or one of your own by its YAML file.

    Raises
    ------
    ValueError
        For an unknown name; the known ones are listed.
    """
    if name.endswith((".yaml", ".yml")):
        return read_definition(name)
    if name not in list_definitions():
        raise ValueError(f"unknown task {name!r}. There is: {', '.join(list_definitions())}, or a definition's file")
    return read_definition(READY / f"{name}.yaml")
