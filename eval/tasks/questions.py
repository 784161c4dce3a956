"""Evaluation sets: questions about images or videos, and a fixed choice of a part of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from vtc.eval.tasks.media.frames import Frames
from vtc.eval.tasks.media.media_store import Media, decode, part_of
from vtc.eval.tasks.media.video import Clip, sample_frames, uniform

NUM_FRAMES = 8


@dataclass(frozen=True)
class Question:
    """One question about one image, several, or a video.

    Attributes
    ----------
    question_id, task : str
        Its name, unique in the set, and the task that it belongs to.
    image_id : str
        What it is about; questions with the same one share their visual input.
    question, answer : str
        The text for the model, all instructions included, and the answer that is shown.
    references : tuple of str
        All accepted answers; the answer alone if not said.
    metric : str
        How predictions are scored, see ``vtc.eval.tasks.metrics``.
    options : tuple of str
        The texts of a multiple choice, without their letters.
    group, category : str
        Questions that are scored together (an image of MME, the turns of a circular question), and a part of the task.
    media : tuple of str
        Ids of all its images in order; `image_id` alone if not said.
    kind : str
        "image", "video" (one file or folder of frames) or "frames" (every one of `media` is a frame).
    fps : float, optional
        Frames per second of "frames"; None: nobody says.
    """

    question_id: str
    task: str
    image_id: str
    question: str
    answer: str
    references: tuple[str, ...] = ()
    metric: str = "exact"
    options: tuple[str, ...] = ()
    group: str = ""
    category: str = ""
    media: tuple[str, ...] = ()
    kind: str = "image"
    fps: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.references:
            object.__setattr__(self, "references", (self.answer,))
        if not self.media:
            object.__setattr__(self, "media", (self.image_id,))


@dataclass(frozen=True)
class TaskInfo:
    """What a ready definition says of a task beside its questions; None: not said."""

    title: str = ""
    source: str = ""
    max_new_tokens: int | None = None
    num_frames: int | None = None


@dataclass(frozen=True)
class TaskSet:
    """Questions and the encoded images, or the videos, that they are about.

    ``fingerprint`` identifies the content, ``limit`` says how many questions a task has at most (None: all),
    ``skipped`` holds a line for each row that was left out because it could not be used.
    """

    name: str
    version: str
    fingerprint: str
    tasks: tuple[str, ...]
    questions: tuple[Question, ...] = field(repr=False)
    images: Mapping[str, Media] = field(repr=False)
    limit: int | None = None
    info: Mapping[str, TaskInfo] = field(default_factory=dict, repr=False)
    skipped: tuple[str, ...] = field(default=(), repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """Number of questions of each task."""
        found = Counter(q.task for q in self.questions)
        return {task: found[task] for task in self.tasks}

    def image(self, image_id: str) -> Image.Image:
        """Decode one image."""
        return decode(self.images[image_id], self._called(image_id))

    def visuals(self, question: Question, num_frames: int | None = None) -> Sequence[Image.Image]:
        """What a question is about: its images in order, or uniformly sampled ``Frames`` of its video.

        Parameters
        ----------
        question : Question
            One of the set.
        num_frames : int, optional
            Frames of a video, all of a shorter one; else what the task's definition says, else ``NUM_FRAMES``.

        Raises
        ------
        FileNotFoundError, ValueError
            For media that can't be read; the file, and where it has them the row, is named.
        """
        info = self.info.get(question.task, TaskInfo())
        wanted = num_frames or info.num_frames or NUM_FRAMES
        first = self.images[question.media[0]]
        if isinstance(first, Clip):
            return sample_frames(first, wanted, self._called(question.media[0]))
        media = question.media
        if question.kind != "frames":
            return [self.image(i) for i in media]
        numbers = uniform(len(media), wanted)
        return Frames.of([self.image(media[i]) for i in numbers], numbers, len(media), question.fps)

    def _called(self, media_id: str) -> str:
        place = getattr(self.images, "place", None)
        return f"image {media_id} of {self.name}" + (f" ({place(media_id)})" if place else "")

    def part(self, questions: Sequence[Question]) -> TaskSet:
        """The set with `questions` alone and the media that they need, small enough to hand to another process."""
        return replace(self, questions=tuple(questions), images=part_of(self.images, questions))

    def groups(self) -> list[list[Question]]:
        """The questions of each image."""
        found: dict[str, list[Question]] = {}
        for q in self.questions:
            found.setdefault(q.image_id, []).append(q)
        return list(found.values())

    def refuse(self, tasks: Sequence[str] | None) -> None:
        """Raise ValueError, with the known ones, for a task that is not there."""
        for task in tasks or ():
            if task not in self.tasks:
                raise ValueError(f"unknown task {task!r}. There is: {', '.join(self.tasks)}")

    def subset(self, tasks: Sequence[str] | None = None, limit: int | None = None) -> TaskSet:
        """The same questions on every machine and in every run.

        Images are visited in the order of a hash of their id, and each gives all its questions until a task has `limit`
        of them: few images serve many questions, and a smaller `limit` is a subset of a larger one. Questions that are
        scored as a group come whole or not at all, the first group even where it is larger than `limit`.

        Raises
        ------
        ValueError
            For an unknown task (the known ones are named) or a `limit` below 1.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit={limit} is out of range: it is the number of questions per task, at least 1")
        self.refuse(tasks)
        wanted = dict.fromkeys(tasks or self.tasks)
        left = {task: limit if limit is not None else len(self.questions) for task in wanted}
        chosen: list[Question] = []
        for unit in self._units():
            task = unit[0].task
            if left.get(task, 0) >= len(unit) or (limit is not None and left.get(task) == limit):
                chosen += unit
                left[task] -= len(unit)
            else:
                left[task] = 0  # not a smaller group in its place: a smaller limit has to stay a part of a larger one
        return replace(self, tasks=tuple(wanted), questions=tuple(chosen), limit=limit)

    def _units(self) -> list[list[Question]]:
        """The questions, image by image in a fixed order; those of one scoring group come together."""
        members: dict[tuple[str, str], list[Question]] = {}
        for q in self.questions:
            if q.group:
                members.setdefault((q.task, q.group), []).append(q)
        units = []
        for group in sorted(self.groups(), key=lambda g: hashlib.sha256(g[0].image_id.encode()).digest()):
            for q in group:
                whole = members.get((q.task, q.group))
                if whole is None:
                    units.append([q])
                elif whole[0] is q:
                    units.append(whole)
        return units
