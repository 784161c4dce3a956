"""Requests of a load test: pictures that no server has seen before, the same ones for every target of a round."""

from __future__ import annotations

import hashlib
import json
import math
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


class Prompts:
    """Makes the bodies of requests.

    Parameters
    ----------
    tasks : TaskSet
        Questions about pictures; each picture is asked about once before any comes again.
    options : LoadOptions
        How large pictures are, and whether they differ.
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
        self.questions = [fit[i] for i in np.random.default_rng(options.seed).permutation(len(fit))]

    def bodies(self, target: Target, block: Block, model: str, extra: dict[str, Any], count: int) -> list[bytes]:
        """The requests of a block; base pictures and questions depend on its round, concurrency and place alone."""
        start = int.from_bytes(_digest(block.concurrency, block.round)[:4], "big")
        return [self._body(target, block, model, extra, i, start + i) for i in range(count)]

    def _body(self, target: Target, block: Block, model: str, extra: dict[str, Any], index: int, number: int) -> bytes:
        asked = self.questions[0 if self.options.same_pictures else number % len(self.questions)]
        picture = self.tasks.image(asked.media[0]).convert("RGB")
        side = self.options.picture_side
        if side is not None:
            picture = picture.resize((side, side))
        if target.resize is not None:
            picture = smaller(picture, target.resize)
        if not self.options.same_pictures:
            picture = salted(picture, _digest(self.run, target.name, block.concurrency, block.round, index))
        content = [
            {"type": "image_url", "image_url": {"url": as_data_url(picture, FAST)}},
            {"type": "text", "text": asked.question},
        ]
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


def _digest(*parts: object) -> bytes:
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=32).digest()
