"""Every number of the training recipe in one place."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from vtc.eval.train.scenes.scene import Density


@dataclass(frozen=True)
class VisionRecipe:
    """Stage 1: the CLIP tower and its text side."""

    steps: int = 1500
    warmup: int = 60
    images_per_rank: int = 3
    learning_rate: float = 1.5e-3
    matrix_learning_rate: float = 0.02
    easy_every: int = 12
    contrast_every: int = 6
    density: Density = field(default_factory=lambda: Density(letters=(8, 20), plates=(3, 6), symbols=(0, 4)))
    width: int = 192
    layers: int = 5
    heads: int = 6
    text_width: int = 128
    text_layers: int = 2
    joint_width: int = 128


@dataclass(frozen=True)
class AlignRecipe:
    """Between the stages: the projector alone learns to speak in word embeddings."""

    density: Density = field(default_factory=lambda: Density(letters=(20, 20), plates=(6, 6), symbols=(1, 4), least=32))
    images: int = 120
    steps: int = 400
    tokens_per_step: int = 4096
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class LanguageRecipe:
    """Stage 2: the projector and the language model."""

    steps: int = 1700
    warmup: int = 100
    hold: float = 0.635
    later_questions_from: int = 525
    images_per_rank: int = 2
    learning_rate: float = 9e-4
    matrix_learning_rate: float = 0.012
    align_weight: float = 0.3
    easy_every: int = 12
    easy_images_per_rank: int = 3
    width: int = 192
    inner_width: int = 384
    layers: int = 8
    heads: int = 6


@dataclass(frozen=True)
class Recipe:
    """The whole recipe.

    The sizes are those of the published run; :func:`tiny_recipe` is for tests.
    """

    seed: int = 0
    ranks: int = 2
    vision: VisionRecipe = field(default_factory=VisionRecipe)
    align: AlignRecipe = field(default_factory=AlignRecipe)
    language: LanguageRecipe = field(default_factory=LanguageRecipe)


def tiny_recipe(seed: int = 0) -> Recipe:
    """Return a recipe of a few steps on a very small model, for tests."""
    return replace(
        Recipe(seed=seed),
        ranks=1,
        vision=VisionRecipe(steps=4, warmup=2, images_per_rank=1, width=48, layers=2, heads=2),
        align=AlignRecipe(images=2, steps=4, tokens_per_step=64),
        language=LanguageRecipe(steps=4, warmup=2, images_per_rank=1, width=48, inner_width=64, layers=2, heads=2),
    )
