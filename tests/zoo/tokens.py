"""The token ids that all tiny models share, and sequences of them."""

from __future__ import annotations

import torch
from torch import Tensor

PAD, BOS, EOS = 0, 1, 2
TEXT = (3, 80)  # ordinary words
IMAGE, VIDEO, OPEN, CLOSE, BREAK = 90, 91, 92, 93, 94
SPECIAL = [IMAGE, VIDEO, OPEN, CLOSE, BREAK]  # never generated
VOCABULARY = 100


def words(n: int, generator: torch.Generator) -> list[int]:
    """`n` random words."""
    return torch.randint(*TEXT, (n,), generator=generator).tolist()


def pad(rows: list[list[int]], side: str = "left", more: int = 0) -> dict[str, Tensor]:
    """Pad `rows` to a common length, and by `more`; gives ``input_ids`` and ``attention_mask``, `[B, L]`."""
    width = max(map(len, rows)) + more
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
    return {"input_ids": ids, "attention_mask": mask}
