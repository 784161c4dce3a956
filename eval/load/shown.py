"""What a request shows: a picture, several, or a clip, made so that no server has seen it before."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vtc.eval.tasks.media.images import as_data_url

SALT_PIXELS = 8
FAST = 1  # how much a picture is compressed: the client shares the machine
WINDOW = 0.75  # of a picture's sides that a frame of a clip shows
JPEG = {"quality": 95, "subsampling": 0}  # fine enough to carry a salt


def smaller(picture: Image.Image, share: float) -> Image.Image:
    """A picture of about `share` of the pixels and the same shape."""
    side = math.sqrt(share)
    return picture.resize((max(1, round(picture.width * side)), max(1, round(picture.height * side))))


def salted(picture: Image.Image, salt: bytes) -> Image.Image:
    """The picture with a few pixels of its first row changed in their low bits: another one to every cache."""
    pixels = np.array(picture)
    row = pixels[0, :SALT_PIXELS].reshape(-1)
    bits = np.frombuffer(salt[: len(row)], dtype=np.uint8)[: len(row)] & 0x0F
    row[: len(bits)] = (row[: len(bits)] & 0xF0) | bits
    pixels[0, : len(row) // 3] = row.reshape(-1, 3)
    return Image.fromarray(pixels)


def clip(picture: Image.Image, frames: int) -> list[Image.Image]:
    """A camera's way over a picture, from corner to corner: frames of its size, neighbours much alike."""
    width, height = picture.size
    found = []
    for i in range(frames):
        along = (1 - WINDOW) * i / max(1, frames - 1)
        box = (along * width, along * height, (along + WINDOW) * width, (along + WINDOW) * height)
        found.append(picture.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return found


def picture_part(picture: Image.Image) -> dict[str, Any]:
    """A picture in a message."""
    return {"type": "image_url", "image_url": {"url": as_data_url(picture, FAST)}}


def video_part(frames: Sequence[Image.Image]) -> dict[str, Any]:
    """A clip in a message, as vLLM takes one without a container: its frames as JPEGs."""
    coded = []
    for frame in frames:
        data = io.BytesIO()
        frame.save(data, format="JPEG", **JPEG)
        coded.append(base64.b64encode(data.getvalue()).decode())
    return {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + ",".join(coded)}}
