"""Requests of a load test: what no server has seen before, the same for every target of a round."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vtc.eval.tasks.media.images import as_data_url
from vtc.eval.tasks.questions import TaskSet

from .options import LoadOptions
from .schedule import Block
from .targets import Target

SALT_PIXELS = 8
FAST = 1  # how much a picture is compressed: the client shares the machine
WINDOW = 0.75  # of a picture's sides that a frame of a clip shows
JPEG = {"quality": 95, "subsampling": 0}  # fine enough to carry a salt


class Prompts:
    """Makes the bodies of requests.

    Parameters
    ----------
    tasks : TaskSet
        Questions about pictures; each picture is asked about once before any comes again.
    options : LoadOptions
        What is shown, how large, and whether it differs.
    run : str
        Tells this run from others, whose pictures a server may still know.

    Raises
    ------
    ValueError
        If no question is about exactly one picture.
    """

    def __init__(self, tasks: TaskSet, options: LoadOptions, run: str):
        self.tasks, self.options, self.run = tasks, options, run
        fit = [group[0] for group in tasks.groups() if group[0].kind == "image" and len(group[0].media) == 1]
        if not fit:
            raise ValueError(f"{tasks.name} has no question about one picture, which a load test asks")
        self._shown: dict[float | None, list[dict[str, Any]]] = {}  # by resize, where all requests show the same
        self.questions = [fit[i] for i in np.random.default_rng(options.seed).permutation(len(fit))]

    def bodies(self, target: Target, block: Block, model: str, extra: dict[str, Any], count: int) -> list[bytes]:
        """The requests of a block; base pictures and questions depend on its round, concurrency and place alone."""
        start = int.from_bytes(_digest(block.concurrency, block.round)[:4], "big")
        return [self._body(target, block, model, extra, i, start + i) for i in range(count)]

    def _body(self, target: Target, block: Block, model: str, extra: dict[str, Any], index: int, number: int) -> bytes:
        same, total = self.options.same_pictures, len(self.questions)
        asked = self.questions[0 if same else number % total]
        if same:
            if target.resize not in self._shown:
                self._shown[target.resize] = self._visual(target, 0, None)
            visual = self._shown[target.resize]
        else:
            visual = self._visual(target, number, _digest(self.run, target.name, block.concurrency, block.round, index))
        content = [*visual, {"type": "text", "text": asked.question}]
        body = {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.options.output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **extra,
            **target.body,
        }
        return json.dumps(body).encode()

    def _visual(self, target: Target, number: int, salt: bytes | None) -> list[dict[str, Any]]:
        """Parts of a message: the pictures of question `number` and those behind it, or a clip made of its picture."""
        found = []
        for i in range(self.options.pictures):
            asked = self.questions[(number + i) % len(self.questions)]
            picture = self.tasks.image(asked.media[0]).convert("RGB")
            side = self.options.picture_side
            if side is not None:
                picture = picture.resize((side, side))
            found.append(picture if target.resize is None else smaller(picture, target.resize))
        if self.options.video is not None:
            found = clip(found[0], self.options.video)
        if salt is not None:
            found = [salted(picture, _digest(salt, i)) for i, picture in enumerate(found)]
        return [video_part(found)] if self.options.video is not None else [picture_part(p) for p in found]


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


def _digest(*parts: object) -> bytes:
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=32).digest()
