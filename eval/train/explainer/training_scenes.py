"""What the bundled model's explainer is trained on: scenes of its own, none of the evaluation set's."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping

from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.train.scenes.build_evaluation_set import SCENE_TASKS
from vtc.eval.train.scenes.render import compress, render
from vtc.eval.train.scenes.scene import Density, Scene, sample_scene

QUALITY = 82
NAME = "scenes"
VERSION = "1"


def explainer_rng(seed: int, index: int, of: str) -> random.Random:
    """Source of randomness of one scene; those of evaluation and of the model's training have other names."""
    return random.Random(f"explainer/{seed}/{of}/{index}")


class DrawnImages(Mapping[str, bytes]):
    """Encoded images of scenes, drawn when they are asked for."""

    def __init__(self, seed: int, count: int):
        self.seed, self.count = seed, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[str]:
        return (f"scene-{i}" for i in range(self.count))

    def __getitem__(self, image_id: str) -> bytes:
        index = int(image_id.removeprefix("scene-"))
        if not 0 <= index < self.count:
            raise KeyError(image_id)
        return compress(render(draw_scene(self.seed, index)), QUALITY)


def draw_scene(seed: int, index: int) -> Scene:
    """Scene `index`, as dense as the bundled model's last training scenes (the evaluation set's are denser)."""
    density = Density(letters=(16, 20), plates=(5, 6), symbols=(1, 4), few_or_many=True)
    return sample_scene(explainer_rng(seed, index, "scene"), density)


def training_scenes(seed: int, count: int) -> TaskSet:
    """`count` scenes with one question of each task of the evaluation set's own (if the scene allows one).

    The first scenes are the same for every `count`.
    """
    questions: list[Question] = []
    for index in range(count):
        scene, rng = draw_scene(seed, index), explainer_rng(seed, index, "questions")
        for task, ask in SCENE_TASKS.items():
            if pool := ask(rng, scene):
                found = rng.choice(pool)
                questions.append(Question(f"scene-{index}-{task}", task, f"scene-{index}", found.text, found.answer))
    fingerprint = hashlib.sha256(f"{NAME}/{VERSION}/{seed}".encode()).hexdigest()[:16]
    images = DrawnImages(seed, count)
    return TaskSet(NAME, VERSION, fingerprint, tuple(SCENE_TASKS), tuple(questions), images)
