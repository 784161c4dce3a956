"""What a case of the selection benchmark is, and where the cases come from.

A case is one file of transcriptions/ (or of another folder: ``run.py --folder``) that defines

- ``NAME``: what ``--methods`` calls it;
- ``make(shape) -> inputs``: made-up inputs of a shape, the same at every call (``Shape.features`` and ``Shape.rand``);
- ``theirs(inputs, shape)`` and ``ours(inputs, shape)``: the plain method, in our words from its formula and in the
  order of work that the paper's code has, and the same by vtc. Each gives `[B, k]` int64 columns;
- optional ``agree(theirs, ours) -> float``: the share in which both results agree, 1 for the same. Default: columns
  that both kept, over `k`, of the worst row. Methods that merge compare what they made instead.

A side that can't run a shape raises ``NotHere`` with the reason.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "transcriptions"
LOOKS = ("noise", "picture")


class NotHere(Exception):
    """A side can't run a shape."""


@dataclass(frozen=True)
class Shape:
    """One line of the table.

    Parameters
    ----------
    tokens, width, batch : int
        N, D and B.
    dtype : torch.dtype
        Of the features.
    keep : float
        Share kept.
    look : {"noise", "picture"}
        What features are like: independent noise, in which all tokens are almost orthogonal, or a common direction,
        regions that change slowly over the picture, near-duplicates and a little noise.
    """

    tokens: int
    width: int
    batch: int
    dtype: torch.dtype = torch.float32
    keep: float = 0.11
    look: str = "noise"

    @property
    def kept(self) -> int:
        """Tokens kept, k."""
        return max(1, math.floor(self.keep * self.tokens + 0.5))

    def generator(self, seed: int = 0) -> torch.Generator:
        """Randomness that is the same for the same `seed`."""
        return torch.Generator().manual_seed(seed)

    def rand(self, *size: int, seed: int = 1) -> Tensor:
        """Uniform numbers in [0, 1), float32."""
        return torch.rand(size, generator=self.generator(seed))

    def features(self, width: int | None = None, seed: int = 0) -> Tensor:
        """Made-up features `[B, N, D]`."""
        width, generator = width or self.width, self.generator(seed)
        made = torch.randn(self.batch, self.tokens, width, generator=generator)
        if self.look == "picture":
            parts = 24
            place = torch.linspace(0, 1, self.tokens)[:, None] * torch.arange(1, parts + 1) * math.pi
            mix = torch.cos(place + torch.rand(parts, generator=generator) * 6).exp()
            made.mul_(0.35).add_(torch.randn(1, 1, width, generator=generator))
            made.baddbmm_(
                mix.expand(self.batch, -1, -1), torch.randn(self.batch, parts, width, generator=generator), alpha=0.2
            )
            sky = made[:, 7::16]
            sky.mul_(0.03).add_(made[:, 6::16][:, : sky.shape[1]])
        return made.to(self.dtype)


def overlap(theirs: Tensor, ours: Tensor) -> float:
    """Columns that both kept, over k, of the worst row."""
    rows = zip(theirs.tolist(), ours.tolist(), strict=True)
    return min(len(set(a) & set(b)) / len(b) for a, b in rows)


@dataclass(frozen=True)
class Case:
    """A case file, loaded."""

    name: str
    make: Callable[[Shape], Any]
    theirs: Callable[[Any, Shape], Any]
    ours: Callable[[Any, Shape], Any]
    agree: Callable[[Any, Any], float] = overlap


def read_cases(folder: Path = FOLDER) -> dict[str, Case]:
    """All cases of `folder` by name."""
    found = {}
    for file in sorted(folder.glob("[!_]*.py")):
        module = _load(file)
        case = Case(module.NAME, module.make, module.theirs, module.ours, getattr(module, "agree", overlap))
        if case.name in found:
            raise ValueError(f"{file}: there is a case named {case.name!r} already")
        found[case.name] = case
    return found


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{file.parent.name}_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
