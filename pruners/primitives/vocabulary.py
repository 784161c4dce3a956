"""Visual tokens seen through the vocabulary: nearest input embeddings, and classes of tokens that were calibrated."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from vtc.pruners.untrusted_json import parse_json

from .precision import decides_on_host, wide_dtype

FORMAT = "vtc embedlens classes, version 1"
KINDS = ("sink", "dead")
SHIPPED = Path(__file__).resolve().parents[1] / "calibrations"
LEAST_CHUNK = 256  # rows of the table compared at a time
FIRST_CHUNKS = 8  # chunks that may leave vectors out
MARGIN = 1e-4  # more than a float32 cosine is off by
TINY = torch.finfo(torch.float32).tiny


@torch.no_grad()
def nearest_ids(x: Tensor, table: Tensor, k: int) -> Tensor:
    """The `k` rows of `table` that are nearest to each vector by cosine.

    Parameters
    ----------
    x : Tensor
        `[..., D]`, any float dtype. A vector that is not finite, or zero, is as near to one row as to another.
    table : Tensor
        `[V, D]`, `V >= k`, any float dtype and device.
    k : int
        How many.

    Returns
    -------
    Tensor
        `[..., k]` int64 on the device of `x`, nearest first; of equally near rows the lowest comes first.

    Notes
    -----
    O(T V D) in float32, over parts of the table, so that neither the similarities `[T, V]` nor a normalised table ever
    exist. A row's norm is taken along the way, which costs 1/T of its products; nothing can get stale.
    """
    flat = x.reshape(-1, x.shape[-1])
    norm = vector_norm(flat, dim=-1, keepdim=True, dtype=wide_dtype(flat))
    unit = (flat / norm.clamp(min=TINY)).masked_fill_(~norm.isfinite(), 0)
    best = unit.new_full((len(unit), 0), 0)
    ids = torch.zeros_like(best, dtype=torch.int64)
    size = max(LEAST_CHUNK, unit.shape[-1] // 4)
    for start in range(0, table.shape[0], size):
        rows = table[start : start + size].to(unit.device, unit.dtype)
        similar = (unit @ rows.T).div_(vector_norm(rows, dim=-1).clamp(min=TINY)).nan_to_num_(nan=-2.0)
        for _ in range(min(k, similar.shape[1])):
            place = similar.argmax(-1, keepdim=True)  # the first of equal ones, by its documentation
            best, ids = torch.cat([best, similar.gather(1, place)], 1), torch.cat([ids, place + start], 1)
            similar.scatter_(1, place, float("-inf"))
        order = best.sort(dim=-1, descending=True, stable=True).indices[:, :k]  # earlier rows stand first
        best, ids = best.gather(1, order), ids.gather(1, order)
    return ids.view(*x.shape[:-1], ids.shape[-1])


@torch.no_grad()
def among_nearest(x: Tensor, table: Tensor, k: int, classes: Sequence[Tensor]) -> list[Tensor]:
    """Whether some of a class of rows is among the `k` nearest of each vector.

    Parameters
    ----------
    x, table, k
        As for ``nearest_ids``.
    classes : sequence of Tensor
        `[C]` int64 each, ids of rows.

    Returns
    -------
    list of Tensor
        `[...]` bool for each class.

    Notes
    -----
    As ``nearest_ids`` tells. On the CPU vectors are left out along the way, once `k` rows of the table are nearer than
    all of the classes by more than rounding can be wrong: most are within the first rows, and only the others are
    compared with all of them.
    """
    undecided = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
    if decides_on_host(x) and decides_on_host(table) and any(len(ids) for ids in classes):
        undecided = _may_be_nearest(x, table, k, torch.cat(list(classes)))
        near = nearest_ids(x[undecided], table, k)
    else:
        near = nearest_ids(x, table, k)
    found = []
    for ids in classes:
        inside = (near[..., None] == ids.to(near.device)).any(-1).any(-1)
        found.append(torch.zeros_like(undecided).masked_scatter(undecided, inside))
    return found


def _may_be_nearest(x: Tensor, table: Tensor, k: int, ids: Tensor) -> Tensor:
    """False for vectors of `x [..., D]` to which `k` of the first rows are surely nearer than all of `ids`: `[...]`."""
    flat = x.reshape(-1, x.shape[-1])
    unit = flat / vector_norm(flat, dim=-1, keepdim=True, dtype=wide_dtype(flat)).clamp(min=TINY)
    mine = _cosines(unit, table[ids]).amax(-1)
    left = mine.isfinite().nonzero()[:, 0]
    sure, nearer = torch.zeros(len(unit), dtype=torch.bool), torch.zeros(len(unit), dtype=torch.int64)
    size = max(LEAST_CHUNK, unit.shape[-1] // 8)
    for start in range(0, min(len(table), FIRST_CHUNKS * size), size):
        if not len(left):
            break
        # a row that is not finite is near to nobody: NaN is not larger
        closer = _cosines(unit[left], table[start : start + size]) > mine[left, None] + MARGIN
        nearer[left] += closer.sum(-1)
        sure |= nearer >= k
        left = left[nearer[left] < k]
    return ~sure.view(x.shape[:-1])


def _cosines(unit: Tensor, rows: Tensor) -> Tensor:
    rows = rows.to(unit.dtype)
    return (unit @ rows.T).div_(vector_norm(rows, dim=-1).clamp(min=TINY))


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
