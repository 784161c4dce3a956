"""Budgets by picture: more tokens for busy pictures, fewer for old ones, and small ones are left alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from .base import Lent, Merged, Stop
from .inner_method import DEPTH, Around
from .primitives.precision import wide
from .registry import register_pruner
from .signals import Projected, Signal
from .visual_tokens import VisualTokens

PROJECTED = Projected()
LEAST, MOST = 0.25, 4.0  # of a budget, by how busy a picture is
RANGES = (("busy", 0, 8), ("usual", 0.01, 1), ("decay", 0, 1), ("sharp", 1, inf), ("floor", 0, inf))


@register_pruner("budget")
@dataclass(kw_only=True)
class Budget(Around):
    """Budgets by picture around any method that chooses once (OURS; no paper).

    Parameters
    ----------
    first : str
        The method that chooses; ``first_params`` are its parameters.
    keep : int or float
        What a picture gets that is as busy as `usual` and not old.
    busy : float
        Exponent: a picture's budget is multiplied by ``(s / usual) ** busy``, within a quarter and four times; 0: all
        are alike.
    usual : float
        The spread s at which `keep` is kept. For equal mean tokens take that of your pictures; `vtc.VTCReport` counts
        what is kept. 0.68 is that of the bundled model's training pictures.
    decay : float
        Of a prompt's pictures, those before the newest `sharp` get ``decay ** age`` of their budget, the age counted
        from the last sharp one; 1: age does not matter.
    sharp : int
        How many of the newest pictures are not old.
    floor : int
        Pictures of at most so many tokens keep them all, and none is pruned below so many.

    Notes
    -----
    Stage: the first method's, input or decoder. ``s = 1 - |mean of the unit features|^2`` in [0, 1] of the projected
    features `[N, D]` that are left, the mean of one minus their cosines: a blank page is near 0, many different things
    are near 1. No text and no labels. O(N D). All crops of a picture share one budget. The age counts pictures of the
    same prompt from which something is to go; what an earlier turn of a chat has left in the cache stays.
    """

    first: str = "divprune"
    first_params: dict[str, Any] | None = None
    busy: float = 1.0
    usual: float = 0.68
    decay: float = 1.0
    sharp: int = 1
    floor: int = 0

    paper: ClassVar[str] = "ours: budgets by picture"
    joins_crops: ClassVar[bool] = True
    adaptive_count: ClassVar[bool] = True
    ragged: ClassVar[bool] = True
    own_flags: ClassVar[tuple[str, ...]] = ("joins_crops", "adaptive_count", "ragged")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low, high in RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                allowed = f"at least {low}" if high == inf else f"in [{low}, {high}]"
                raise ValueError(f"budget.{name} must be {allowed}, got {value!r}")
        stops = replace(self._first, keep=0.5).stops(DEPTH)
        if len(stops) != 1 or stops[0].stage == "vision" or stops[0].keep != 0.5 or self._first.keep is not None:
            raise ValueError(f"budget.first={self.first!r} must choose once, at the input or decoder stage, by a keep")

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """The first method's, and what tells how busy a picture is."""
        return tuple(dict.fromkeys((*self._first.signals, PROJECTED)))

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """The first method's."""
        (stop,) = self._first.stops(depth)
        return (stop._replace(keep=self.keep),)

    def factors(self, tokens: VisualTokens) -> list[float]:
        """By what each row's budget is multiplied: how busy it is, and how old."""
        found = [1.0] * len(tokens.counts)
        if self.busy:
            projected = tokens.read(PROJECTED)
            spread = torch.stack([spread_of(projected[row, :n]) for row, n in enumerate(tokens.counts)])
            found = (spread / self.usual).pow(self.busy).nan_to_num(1.0).clamp(LEAST, MOST).tolist()
        if self.decay < 1:
            places = list(zip(tokens.sample.tolist(), tokens.order, strict=True))
            for row, (sample, order) in enumerate(places):
                newer = sum(other == sample and later > order for other, later in places)
                found[row] *= self.decay ** max(0, newer - self.sharp + 1)
        return found

    def select(self, tokens: VisualTokens, k: int) -> Tensor | Merged:
        """What the first method keeps of each row under its own budget; -1 in unused columns."""
        found = [self._chosen(tokens, row, factor) for row, factor in enumerate(self.factors(tokens))]
        width = max(k, *(len(index) for index, *_ in found))
        columns = torch.stack([pad(index, (0, width - len(index)), value=-1) for index, *_ in found])
        if not self.merges:
            return columns
        sizes = [pad(size, (0, width - len(size))) for *_, size in found if size is not None]
        vectors = torch.stack([pad(v, (0, 0, 0, width - len(v))) for _, v, _ in found])
        return Merged(columns, vectors, torch.stack(sizes) if len(sizes) == len(found) else None)

    def _chosen(self, tokens: VisualTokens, row: int, factor: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """A row's columns `[k]`, vectors `[k, D]` and sizes `[k]`, all of them where its budget allows that."""
        n = tokens.counts[row]
        budget = n if n <= self.floor else min(n, max(1, self.floor, round(factor * tokens.budgets[row])))
        if budget == n:
            whole = torch.arange(n, device=tokens.ids.device)
            return whole, tokens.features[row, :n], torch.ones_like(whole, dtype=torch.float32)
        found = self._first.select(replace(tokens.take([row]), budgets=[budget]), budget)
        assert not isinstance(found, Lent)  # it chooses once, for good
        index = (found.index if isinstance(found, Merged) else found)[0]
        index = index if self._first.adaptive_count else index[:budget]
        if isinstance(found, Merged):
            size = None if found.size is None else found.size[0, : len(index)]
            return index, found.features[0, : len(index)].to(tokens.features), size
        return index, tokens.features[row, index.clamp(min=0)], None


def spread_of(x: Tensor, rows: int = 256) -> Tensor:
    """One minus the mean cosine of the vectors `x [N, D]`, a float32 scalar in [0, 1]."""
    total = torch.zeros(x.shape[1], dtype=torch.float32, device=x.device)
    for part in x.split(rows):  # half precision is widened a part at a time
        total += normalize(wide(part), dim=-1).nan_to_num(0, 0, 0).sum(0)
    return 1 - (total / len(x)).square().sum().clamp(max=1)
