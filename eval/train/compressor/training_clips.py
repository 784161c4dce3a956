"""What LangDC is trained on without other data: clips of the scenes' code, with captions or questions."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping

from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.train.scenes.clips import FRAMES, Clip, clip_questions, sample_clip
from vtc.eval.train.scenes.render import compress, render

QUALITY = 82
CAPTION_TASK, ASKED = "caption", "what is in the image?"
NAME, VERSION = "clips", "1"


def draw_clip(seed: int, index: int) -> Clip:
    """Clip `index`."""
    return sample_clip(random.Random(f"clips/{seed}/{index}"))


class DrawnFrames(Mapping[str, bytes]):
    """Encoded frames of clips, drawn when they are asked for."""

    def __init__(self, seed: int, count: int):
        self.seed, self.count = seed, count

    def __len__(self) -> int:
        return self.count * FRAMES

    def __iter__(self) -> Iterator[str]:
        return (f"clip-{i}-{frame}" for i in range(self.count) for frame in range(FRAMES))

    def __getitem__(self, name: str) -> bytes:
        index, frame = map(int, name.removeprefix("clip-").split("-"))
        if not (0 <= index < self.count and 0 <= frame < FRAMES):
            raise KeyError(name)
        return compress(render(draw_clip(self.seed, index).frames[frame]), QUALITY)


def training_clips(seed: int, count: int, captions: bool) -> TaskSet:
    """`count` clips, each with its caption or a question of each task; the first are the same for every `count`."""
    questions: list[Question] = []
    for index in range(count):
        clip, rng = draw_clip(seed, index), random.Random(f"clips/{seed}/{index}/questions")
        media = tuple(f"clip-{index}-{frame}" for frame in range(FRAMES))
        for task, (text, answer) in _asked(rng, clip, captions).items():
            name = f"clip-{index}"
            questions.append(Question(f"{name}-{task}", task, name, text, answer, media=media, kind="frames"))
    tasks = tuple(dict.fromkeys(q.task for q in questions))
    fingerprint = hashlib.sha256(f"{NAME}/{VERSION}/{seed}/{captions}".encode()).hexdigest()[:16]
    return TaskSet(NAME, VERSION, fingerprint, tasks, tuple(questions), DrawnFrames(seed, count))


def _asked(rng: random.Random, clip: Clip, captions: bool) -> dict[str, tuple[str, str]]:
    """Question and answer by task."""
    if captions:
        return {CAPTION_TASK: (ASKED, clip.caption)}
    questions = clip_questions(rng, clip)
    rng.shuffle(questions)
    return {q.task: (q.text, q.answer) for q in questions}
