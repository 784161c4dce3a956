"""A file with classes of visual tokens, as plain values: what it holds is checked before torch is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vtc.pruners.untrusted_json import CommandFile

FORMAT = "vtc embedlens classes, version 1"
KINDS = ("sink", "dead")
LARGEST = (2 - 2**-23) * 2.0**127  # float32's


@dataclass(frozen=True)
class StoredClass:
    """A class as stored: its kind, vocabulary ids, mean unit vector of `D` numbers, and threshold."""

    kind: str
    ids: tuple[int, ...]
    direction: tuple[float, ...]
    threshold: float


@dataclass(frozen=True)
class StoredCalibration:
    """The classes of one model, which may be none, and the shape of its table, `V` and `D`."""

    vocabulary: int
    hidden: int
    classes: tuple[StoredClass, ...]
    name: str


def _calibration(found: dict[str, Any], path: str) -> StoredCalibration:
    hidden, vocabulary = int(found["hidden_size"]), int(found["vocabulary_size"])
    classes = tuple(_class(c, hidden, vocabulary) for c in found["classes"])
    return StoredCalibration(vocabulary, hidden, classes, str(found.get("model", path)))


def _class(stored: dict[str, Any], hidden: int, vocabulary: int) -> StoredClass:
    direction = tuple(float(x) for x in stored["direction"])
    ids, threshold = tuple(int(i) for i in stored["ids"]), float(stored["threshold"])
    if stored["kind"] not in KINDS:
        raise ValueError(f"kind {stored['kind']!r} is none of {', '.join(KINDS)}")
    fits = len(direction) == hidden and all(math.isfinite(x) and abs(x) <= LARGEST for x in direction)
    if not fits or not any(direction):
        raise ValueError(f"a direction must be {hidden} numbers, not all zero; it is [{len(direction)}]")
    if not -1 <= threshold <= 1 or not all(0 <= i < vocabulary for i in ids):
        raise ValueError(f"threshold {threshold} or ids {ids} are out of range")
    return StoredClass(stored["kind"], ids, direction, threshold)


read_stored = CommandFile("embedlens.classes", "vtc embedlens", FORMAT, _calibration).read
