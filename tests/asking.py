"""A question to a model and its answer."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image

BUNDLED = Path(str(files("vtc.eval"))) / "bundled" / "model"


def picture() -> Image.Image:
    """A red disc on grey."""
    y, x = np.mgrid[:336, :336]
    pixels = np.full((336, 336, 3), 120, np.uint8)
    pixels[(x - 168) ** 2 + (y - 168) ** 2 < 70**2] = (220, 30, 30)
    return Image.fromarray(pixels)


def chat(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": question}]}]


def ask(question: str) -> Any:
    processor = transformers.AutoProcessor.from_pretrained(BUNDLED)
    return processor.apply_chat_template(
        chat(question), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
