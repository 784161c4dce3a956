"""Classes of visual tokens that were calibrated through the vocabulary, as files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from vtc.pruners.untrusted_json import parse_json

FORMAT = "vtc embedlens classes, version 1"
KINDS = ("sink", "dead")
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
    if not os.path.isfile(path):
        raise FileNotFoundError(f"embedlens.classes={path!r} is no file here; make one with 'vtc embedlens --output'")
    return _read(path, os.stat(path).st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: str, changed: int) -> Calibration:
    try:
        found = parse_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"embedlens.classes: {path!r} is no JSON file ({error})") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"embedlens.classes: {path!r} was not written by 'vtc embedlens' ({FORMAT})")
    try:
        hidden, vocabulary = int(found["hidden_size"]), int(found["vocabulary_size"])
        classes = tuple(_class(c, hidden, vocabulary) for c in found["classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"embedlens.classes: {path!r} is damaged ({type(error).__name__}: {error})") from error
    return Calibration(vocabulary, hidden, classes, str(found.get("model", path)))


def _class(stored: dict[str, Any], hidden: int, vocabulary: int) -> TokenClass:
    direction = torch.tensor(stored["direction"], dtype=torch.float32)
    ids, threshold = tuple(int(i) for i in stored["ids"]), float(stored["threshold"])
    if stored["kind"] not in KINDS:
        raise ValueError(f"kind {stored['kind']!r} is none of {', '.join(KINDS)}")
    if direction.shape != (hidden,) or not direction.isfinite().all() or not direction.any():
        raise ValueError(f"a direction must be {hidden} numbers, not all zero; it is {list(direction.shape)}")
    if not -1 <= threshold <= 1 or not all(0 <= i < vocabulary for i in ids):
        raise ValueError(f"threshold {threshold} or ids {ids} are out of range")
    return TokenClass(stored["kind"], ids, direction / vector_norm(direction), threshold)


@lru_cache(maxsize=1)
def shipped() -> tuple[Calibration, ...]:
    """The calibrations that come with this package."""
    return tuple(read_calibration(str(path)) for path in sorted(SHIPPED.glob("*.json")))
