"""Pictures of a study on the bundled model: what its frozen tower makes of them is computed once and kept.

Training pictures are new scenes as dense as the model's last training scenes, and a few of easy-VQA's training split,
in the shares that the model was trained with. The evaluation set is the bundled one, whole.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor

from vtc.bundled_files import bundled_data, bundled_model_path
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.train.basics.images import TrainingImage, draw_easy, draw_scene
from vtc.eval.train.language.llava import bare_tower
from vtc.eval.train.scenes.questions import LATER_SHARES, Question, sample_questions
from vtc.eval.train.scenes.scene import Density, Scene, sample_scene
from vtc.eval.train.vision.tower import encode, to_patches

DENSITY = Density(letters=(16, 20), plates=(5, 6), symbols=(1, 4), few_or_many=True)
SCENES, EASY, EASY_EVERY = 360, 36, 12
AT_ONCE = 6
PROJECTED = (4,)  # of the tower's 5 layers those before what the projector reads


@dataclass(frozen=True)
class Asked:
    """Pictures of one step and what is asked about each: ``features [B, 576, D]`` of the tower, bfloat16."""

    features: Tensor
    questions: list[list[Question]]


@dataclass(frozen=True)
class Evaluation:
    """The bundled evaluation set: ``features [I, 576, D]``, and of each picture the questions with their ids."""

    features: Tensor
    questions: list[list[Question]]
    ids: list[list[str]]
    image_of: dict[str, str]
    task_of: dict[str, str]


def training_image(index: int) -> TrainingImage:
    """Picture `index` of the training pictures: scenes first, then easy-VQA's."""
    rng = random.Random(f"trained-study/picture/{index}")
    return draw_scene(rng, DENSITY) if index < SCENES else draw_easy(rng)


def training_scene(index: int) -> Scene:
    """What picture `index`, a scene, shows: drawn first of all, and no pixel of it is needed."""
    return sample_scene(random.Random(f"trained-study/picture/{index}"), DENSITY)


@torch.no_grad()
def encoded(
    model: torch.nn.Module, pixels: Sequence[np.ndarray], file: Path, levels: Sequence[int] = PROJECTED
) -> Tensor:
    """What `levels` of the tower's layers make of all pictures, side by side: `[I, 576, len(levels) D]`.

    Computed in float32 and kept in `file` as bfloat16; by default it is what the projector reads.
    """
    if not file.exists():
        tower, found = bare_tower(model), []
        for start in range(0, len(pixels), AT_ONCE):
            patches = to_patches(np.stack(pixels[start : start + AT_ONCE]))
            made = {n: encode(tower, patches, n)[:, 1:].bfloat16() for n in set(levels)}
            found.append(torch.cat([made[n] for n in levels], -1))
        draft = file.with_suffix(f".{os.getpid()}.part")
        torch.save(torch.cat(found), draft)
        draft.replace(file)
    return torch.load(file, weights_only=True)


class TrainingPictures:
    """Draws the steps of a run; data depend on the seed and the step alone."""

    def __init__(
        self,
        model: torch.nn.Module,
        folder: Path,
        per_step: int = 2,
        asked: int = 16,
        levels: Sequence[int] = PROJECTED,
    ):
        self.per_step, self.asked = per_step, asked
        self.scenes = [training_scene(i) for i in range(SCENES)]
        self.easy = [training_image(SCENES + i).easy for i in range(EASY)]
        file = folder / f"training{_named(levels)}.pt"
        drawn = [] if file.exists() else [training_image(i).pixels for i in range(SCENES + EASY)]
        self.features = encoded(model, drawn, file, levels)

    def step(self, seed: int, step: int) -> Asked:
        """Pictures and questions of one step: every scene once before any comes again, in the seed's order."""
        rng = random.Random(f"trained-study/{seed}/{step}")
        turn, late = divmod(step, EASY_EVERY)
        if late == EASY_EVERY - 1:
            chosen = [SCENES + i for i in rng.sample(range(EASY), self.per_step)]
        else:
            start = (turn * (EASY_EVERY - 1) + late) * self.per_step
            chosen = [self._scene(seed, start + i) for i in range(self.per_step)]
        asked = [self._questions(rng, i)[: self.asked] for i in chosen]
        return Asked(self.features[chosen], asked)

    def _questions(self, rng: random.Random, index: int) -> list[Question]:
        if index < SCENES:
            return sample_questions(rng, self.scenes[index], LATER_SHARES)
        return list(self.easy[index - SCENES].questions)

    @staticmethod
    def _scene(seed: int, n: int) -> int:
        order = list(range(SCENES))
        random.Random(f"trained-study/{seed}/order/{n // SCENES}").shuffle(order)
        return order[n % SCENES]


@functools.lru_cache(maxsize=1)
def _processor() -> Any:
    return AutoProcessor.from_pretrained(bundled_model_path()).image_processor


def _pixels(image: Image.Image) -> np.ndarray:
    """A picture in the size that the model's processor gives it, `[336, 336, 3]` uint8."""
    found = _processor()(image.convert("RGB"), do_rescale=False, do_normalize=False, return_tensors="pt")[
        "pixel_values"
    ]
    return found[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def _named(levels: Sequence[int]) -> str:
    return "" if levels == PROJECTED else "-" + "-".join(map(str, levels))


def evaluation(model: torch.nn.Module, folder: Path, levels: Sequence[int] = PROJECTED) -> Evaluation:
    """The whole bundled evaluation set."""
    tasks = load_tasks(bundled_data())
    groups = tasks.groups()
    file = folder / f"evaluation{_named(levels)}.pt"
    pixels = [] if file.exists() else [_pixels(tasks.image(group[0].image_id)) for group in groups]
    return Evaluation(
        features=encoded(model, pixels, file, levels),
        questions=[[Question(q.task, q.question, q.answer) for q in group] for group in groups],
        ids=[[q.question_id for q in group] for group in groups],
        image_of={q.question_id: q.image_id for q in tasks.questions},
        task_of={q.question_id: q.task for q in tasks.questions},
    )
