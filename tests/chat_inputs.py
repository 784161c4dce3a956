"""Pictures and real processors for what the harness feeds a model."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image
from processors import PROCESSORS


@lru_cache(maxsize=32)
def processor_of(name: str) -> Any:
    return PROCESSORS[name]()


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise)
