"""What the language stage sees at each step: images, questions, tokens and loss weights."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from vtc.eval.train.basics.images import TrainingImage, draw_easy, draw_scene
from vtc.eval.train.basics.recipe import Recipe
from vtc.eval.train.scenes.palette import NUM_PATCHES
from vtc.eval.train.scenes.questions import FIRST_SHARES, LATER_SHARES, Question, early_wording, sample_questions
from vtc.eval.train.scenes.scene import Density

from .pack_questions import NO_TARGET, PackedQuestions

_END_WEIGHT = 0.05
_TASK_WEIGHTS = {"count": 3.0, "more": 2.0, "spatial": 2.0}
_PART_EVERY = 3
_PART_SHARES = (1 / 3, 5 / 6)


def draw_batch(recipe: Recipe, step: int, rng: random.Random) -> tuple[list[TrainingImage], list[list[Question]]]:
    """Draw the images of one step and what is asked about them."""
    sizes = recipe.language
    if step % sizes.easy_every == sizes.easy_every - 1:
        images = [draw_easy(rng) for _ in range(sizes.easy_images_per_rank)]
        return images, [list(image.easy.questions) for image in images if image.easy]
    images = [draw_scene(rng, density_at(step)) for _ in range(sizes.images_per_rank)]
    early = step < sizes.later_questions_from
    shares = FIRST_SHARES if early else LATER_SHARES
    asked = [sample_questions(rng, image.scene, shares) for image in images if image.scene]
    if early:
        asked = [[early_wording(question) for question in questions] for questions in asked]
    return images, asked


def density_at(step: int) -> Density:
    """Return how dense scenes are at a step.

    Few entities come first, then many. Sparse scenes come back in every second step for a while:
    there it pays at once to look at the plate of the right colour. A kind of symbol is there once
    or four times from the start: heads that look up the one right token first do not unlearn it.
    """
    if step < 190:
        letters, plates = (3, 8), (2, 3)
    elif step < 418:
        letters, plates = (6, 16), (2, 5)
    elif step < 700:
        letters, plates = (10, 20), (3, 6)
    elif 746 <= step < 1150 and step % 2 == 0:
        letters, plates = (2, 6), (2, 3)
    else:
        letters, plates = (16, 20), (5, 6)
    return Density(letters=letters, plates=plates, symbols=(1, 4), few_or_many=True)


def choose_tokens(step: int, rng: random.Random, patches: int = NUM_PATCHES) -> Tensor:
    """Return the image tokens of one step: all of them, or in a third of the steps a random part.

    The part is uniform and its size is random; it depends neither on the image nor on a question.
    """
    count = patches
    if step % _PART_EVERY == 1:
        count = rng.randint(*(round(share * patches) for share in _PART_SHARES))
    return torch.tensor(sorted(rng.sample(range(patches), count)))


def answer_weights(packed: PackedQuestions, asked: Sequence[Sequence[Question]]) -> Tensor:
    """Return the loss weight of every target: little for the end token, more for rare tasks."""
    weights = torch.ones(packed.targets.shape)
    for index, questions in enumerate(asked):
        for question, (start, end) in zip(questions, packed.spans[index], strict=True):
            weights[index, start : end - 1] = _TASK_WEIGHTS.get(question.task, 1.0)
            weights[index, end - 1] = _END_WEIGHT
    return weights


def accuracies(packed: PackedQuestions, logits: Tensor, asked: Sequence[Sequence[Question]]) -> dict[str, float]:
    """Share of right answers per task (every answer token the most likely one)."""
    known = packed.targets != NO_TARGET
    right = torch.zeros_like(known)
    right[known] = logits.argmax(dim=-1) == packed.targets[known]
    hits: dict[str, list[bool]] = {}
    for index, questions in enumerate(asked):
        for question, (start, end) in zip(questions, packed.spans[index], strict=True):
            hit = bool(right[index, start : end - 1].all())
            hits.setdefault(question.task, []).append(hit)
    return {task: sum(found) / len(found) for task, found in hits.items()}
