"""Each question about a picture has the processor run on it again: of equal pictures the outputs are taken again."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

WHOLE = ("L", "RGB", "RGBA")  # modes without a palette


@contextmanager
def pictures_once(processor: Any) -> Iterator[None]:
    """Within it, the image processor of `processor` runs only where its pictures or options are not those of last time.

    The tensors that it gives again are the same ones.
    """
    inner: Any = getattr(processor, "image_processor", None)
    real: Any = getattr(inner, "preprocess", None)
    if real is None or "preprocess" in getattr(inner, "__dict__", {"preprocess": None}):
        yield
        return
    last: list[Any] = []

    @functools.wraps(real)
    def preprocess(images: Any, *args: Any, **options: Any) -> Any:
        asked = _content(images), args, options
        if not (last and _same(last[0], asked)):
            last[:] = asked, real(images, *args, **options)
        return copy.copy(last[1])  # processors take entries out of it

    inner.preprocess = preprocess
    try:
        yield
    finally:
        del inner.preprocess


def _content(images: Any) -> Any:
    if isinstance(images, list | tuple):
        return [_content(image) for image in images]
    if isinstance(images, Image.Image) and images.mode in WHOLE:
        return images.mode, images.size, {**images.info}, images.tobytes()
    return object()  # equal to nothing


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (ValueError, RuntimeError):  # arrays don't say so in one word
        return False
