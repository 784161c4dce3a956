"""The vocabulary of the small models, and prompts made of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PAD, BOS, EOS = 0, 1, 2
WORDS = (3, 80)
FIRST_SPECIAL, VOCABULARY = 90, 160
OPEN, CLOSE, BREAK = 157, 158, 159  # marks around pictures, where a configuration names none
TOKEN_FIELD = re.compile(r"(token|patch)_(id|index)s?$")


@dataclass(frozen=True)
class Tokens:
    """Special tokens of a model: placeholders, and the marks around pictures; ``special`` are never generated."""

    image: int
    video: int | None
    open: int
    close: int
    special: tuple[int, ...]
    line: int = BREAK
    audio: int | None = None


def renumber(config: dict[str, Any]) -> None:
    """Move all special tokens of a configuration, at whatever depth, into the small vocabulary."""
    _renumber(config, {})


def _renumber(config: dict[str, Any], known: dict[int, int]) -> None:
    for key, value in config.items():
        if isinstance(value, dict):
            _renumber(value, known)
        elif TOKEN_FIELD.search(str(key)) and value is not None:  # Aria's table of patches has numbers for keys
            fixed = next((new for name, new in (("pad", PAD), ("bos", BOS), ("eos", EOS)) if name in key), None)
            several = isinstance(value, (list, tuple))
            new = [known.setdefault(v, FIRST_SPECIAL + len(known)) if fixed is None else fixed for v in _ints(value)]
            config[key] = new if several else new[0] if new else value


def _ints(value: Any) -> list[int]:
    return [v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, int)]


def tokens_of(config: Any) -> Tokens:
    """The special tokens of a shrunk configuration."""

    def named(*names: str) -> int | None:
        return next((v for n in names if isinstance(v := getattr(config, n, None), int)), None)

    image = named("image_token_id", "image_token_index")
    if image is None:
        raise NotImplementedError(
            f"the configuration of {config.model_type!r} names no image_token_id, so vtc does not know which tokens "
            "stand for a picture"
        )
    start = named("vision_start_token_id", "boi_token_id", "boi_token_index")
    end = named("vision_end_token_id", "eoi_token_id", "eoi_token_index")
    return Tokens(
        image,
        named("video_token_id", "video_token_index"),
        OPEN if start is None else start,
        CLOSE if end is None else end,
        tuple(range(WORDS[1], VOCABULARY)),
        audio=named("audio_token_id", "audio_token_index"),
    )


def words(n: int, generator: torch.Generator) -> list[int]:
    """`n` random words."""
    return torch.randint(*WORDS, (n,), generator=generator).tolist()


def pad(rows: list[list[int]], side: str = "left") -> dict[str, Tensor]:
    """Pad `rows` to a common length; gives ``input_ids`` and ``attention_mask``, `[B, L]`."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
    return {"input_ids": ids, "attention_mask": mask}
