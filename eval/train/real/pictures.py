"""Training pictures, drawn from their numbers alone, and what the frozen tower makes of each, kept on disk."""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vtc.eval.train.basics.images import QUALITIES, training_rng
from vtc.eval.train.scenes import easyvqa
from vtc.eval.train.scenes.palette import IMAGE_SIZE
from vtc.eval.train.scenes.questions import Question, sample_questions
from vtc.eval.train.scenes.render import PatchLabels, compress, patch_labels, render
from vtc.eval.train.scenes.scene import Scene, sample_scene

from .recipe import RealRecipe

Encode = Callable[[Image.Image], Tensor]
Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
"""Left, top, right and bottom, as shares of the picture."""


@dataclass(frozen=True)
class Picture:
    """A scene, or a picture of easy-VQA."""

    scene: Scene | None = None
    easy: easyvqa.EasyImage | None = None
    quality: int = 0

    def open(self) -> Image.Image:
        """The pixels as the evaluation set has them: JPEG of 336 pixels, or easy-VQA's own file."""
        if self.scene is None:
            assert self.easy is not None
            return Image.open(self.easy.path).convert("RGB")
        return Image.open(io.BytesIO(compress(render(self.scene), self.quality))).convert("RGB")

    def ask(self, rng: random.Random, shares: dict[str, int], part: Box = WHOLE) -> list[Question]:
        """Some questions about what lies in a part of a scene; all that there are about a picture of easy-VQA."""
        if self.scene is None:
            assert self.easy is not None
            return list(self.easy.questions)
        left, top, right, bottom = (edge * IMAGE_SIZE for edge in part)
        inside = [e for e in self.scene.entities if left <= e.x < right and top <= e.y < bottom]
        return sample_questions(rng, replace(self.scene, entities=tuple(inside)), shares)

    def labels(self, grid: int) -> PatchLabels:
        """What each patch of a scene shows."""
        assert self.scene is not None
        return patch_labels(self.scene, grid)


def draw(recipe: RealRecipe, number: int) -> Picture:
    """The picture of a number: first the scenes, then those of easy-VQA."""
    rng = training_rng(recipe.seed, "real-pictures", number, 0)
    if number >= recipe.scenes:
        return Picture(easy=rng.choice(_easy_images()))
    density = next(density for end, density in recipe.densities if number < end)
    return Picture(scene=sample_scene(rng, density), quality=rng.randint(*QUALITIES))


@functools.lru_cache(maxsize=1)
def _easy_images() -> list[easyvqa.EasyImage]:
    return easyvqa.load_split("train")


class FeatureStore:
    """The tower's features of each picture, encoded when they are asked for first.

    Parameters
    ----------
    folder : Path
        Where they are kept; a run that was killed finds what is there.
    shape : tuple of int
        Pictures, patches, width.
    encode : callable
        A picture to ``[patches, width]``.
    open_picture : callable
        A number to its picture.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int, int], encode: Encode, open_picture: Callable[[int], Image.Image]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._encode, self._open = encode, open_picture
        self._features = _mapped(folder / "features.f16", np.float16, shape)
        self._done = _mapped(folder / "done.u8", np.uint8, shape[:1])

    def __call__(self, numbers: Sequence[int]) -> Tensor:
        """``[len(numbers), patches, width]`` in float32."""
        for number in numbers:
            if not self._done[number]:
                self._features[number] = self._encode(self._open(number)).numpy()
                self._done[number] = 1
        return torch.from_numpy(self._features[list(numbers)].astype(np.float32))


def _mapped(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    return np.memmap(path, dtype, "r+" if path.exists() else "w+", shape=shape)
