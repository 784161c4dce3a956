"""Training images with their patch labels, drawn from the step number alone."""

from __future__ import annotations

import functools
import io
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vtc.eval.train.scenes import easyvqa
from vtc.eval.train.scenes.render import PatchLabels, compress, patch_labels, render
from vtc.eval.train.scenes.scene import Density, Scene, sample_scene

QUALITIES = (78, 92)


@dataclass(frozen=True)
class TrainingImage:
    """Pixels, patch labels and where they come from (one of ``scene`` and ``easy``)."""

    pixels: np.ndarray
    labels: PatchLabels
    scene: Scene | None = None
    easy: easyvqa.EasyImage | None = None


def training_rng(seed: int, stage: str, step: int, rank: int) -> random.Random:
    """Return the random source of one step: no other state is needed to resume a run."""
    return random.Random(f"train/{seed}/{stage}/{step}/{rank}")


def draw_scene(rng: random.Random, density: Density) -> TrainingImage:
    """Draw a synthetic scene, JPEG-compressed as the evaluation images are."""
    scene = sample_scene(rng, density)
    stored = compress(render(scene), rng.randint(*QUALITIES))
    return TrainingImage(np.asarray(Image.open(io.BytesIO(stored))), patch_labels(scene), scene)


def draw_easy(rng: random.Random) -> TrainingImage:
    """Draw an image of easy-VQA's training split."""
    image = rng.choice(_easy_images())
    pixels = np.asarray(easyvqa.upscaled(image))
    return TrainingImage(pixels, easyvqa.patch_labels(image), easy=image)


@functools.lru_cache(maxsize=1)
def _easy_images() -> list[easyvqa.EasyImage]:
    return easyvqa.load_split("train")
