"""Classes of visual tokens that were calibrated through the vocabulary, as files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .calibration_file import StoredCalibration, read_stored

SHIPPED = Path(__file__).resolve().parents[1] / "calibrations"


@dataclass(frozen=True)
class TokenClass:
    """Tokens of one kind, ``"sink"`` or ``"dead"``.

    ``ids`` are their vocabulary ids; ``direction`` `[D]` float32 is their mean unit vector, and a token belongs to the
    class where its cosine with it is at least ``threshold``.
    """

    kind: str
    ids: tuple[int, ...]
    direction: Tensor
    threshold: float


@dataclass(frozen=True)
class Calibration:
    """The classes of one model, which may be none, and the shape of its table, `V` and `D`."""

    vocabulary: int
    hidden: int
    classes: tuple[TokenClass, ...]
    name: str


def read_calibration(path: str) -> Calibration:
    """Read a file that ``vtc embedlens`` wrote.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is not of this format.
    """
    return _as_tensors(read_stored(path))


@lru_cache(maxsize=8)
def _as_tensors(stored: StoredCalibration) -> Calibration:
    classes = []
    for one in stored.classes:
        direction = torch.tensor(one.direction, dtype=torch.float32)
        classes.append(TokenClass(one.kind, one.ids, direction / vector_norm(direction), one.threshold))
    return Calibration(stored.vocabulary, stored.hidden, tuple(classes), stored.name)


@lru_cache(maxsize=1)
def shipped() -> tuple[Calibration, ...]:
    """The calibrations that come with this package."""
    return tuple(read_calibration(str(path)) for path in sorted(SHIPPED.glob("*.json")))
