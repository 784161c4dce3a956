"""Frames of a video, and when each of them is shown: what models that write times into their prompts need to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ASSUMED_FPS = 3.0  # of pictures whose rate nobody says; what TVQA's folders of frames have


@dataclass(frozen=True)
class Frames(Sequence[Image.Image]):
    """Some frames of a video, or of a part of one, in order; a sequence of their pictures.

    Attributes
    ----------
    pictures : tuple of image
        The frames.
    indices : tuple of int
        Their numbers, counted from the beginning of the part: frame i is shown after ``indices[i] / fps`` seconds.
    total : int
        Frames that the part has.
    fps : float
        Frames per second.
    known : bool
        Whether the rate was said; else it is ``ASSUMED_FPS``.
    """

    pictures: tuple[Image.Image, ...]
    indices: tuple[int, ...]
    total: int
    fps: float
    known: bool = True

    @classmethod
    def of(
        cls,
        pictures: Sequence[Image.Image],
        indices: Sequence[int] | None = None,
        total: int | None = None,
        fps: float | None = None,
    ) -> Frames:
        """Frames that come as pictures.

        Parameters
        ----------
        pictures : sequence of image
            The frames.
        indices, total : optional
            As the attributes; without them the pictures are all that there is.
        fps : float, optional
            None: nobody says.
        """
        numbers = range(len(pictures)) if indices is None else indices
        whole = len(pictures) if total is None else total
        return cls(tuple(pictures), tuple(numbers), whole, fps or ASSUMED_FPS, fps is not None)

    @overload
    def __getitem__(self, i: int) -> Image.Image: ...

    @overload
    def __getitem__(self, i: slice) -> tuple[Image.Image, ...]: ...

    def __getitem__(self, i: int | slice) -> Image.Image | tuple[Image.Image, ...]:
        return self.pictures[i]

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def array(self) -> NDArray[np.uint8]:
        """`[n, H, W, 3]`, RGB.

        Raises
        ------
        ValueError
            For frames of different sizes, which are no video.
        """
        sizes = sorted({picture.size for picture in self.pictures})
        if len(sizes) > 1:
            first, second = ("{} x {}".format(*size) for size in sizes[:2])
            raise ValueError(f"the frames of a video differ in size ({first} and {second} pixels): make them equal")
        return np.stack([np.asarray(picture.convert("RGB")) for picture in self.pictures])

    @property
    def metadata(self) -> dict[str, Any]:
        """``video_metadata`` for a video processor of transformers; a new one each time, as they write into it."""
        width, height = self.pictures[0].size
        return {
            "total_num_frames": self.total,
            "fps": self.fps,
            "duration": self.total / self.fps,
            "frames_indices": list(self.indices),
            "width": width,
            "height": height,
        }
