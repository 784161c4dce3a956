"""A method that only reads the attention ahead, and what it must have read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

import vtc
from vtc.pruners.signals import AttentionAhead

AHEAD = AttentionAhead()


@dataclass(kw_only=True)
class Look(vtc.Pruner):
    """Reads what comes, and keeps everything although asked for one token: only the reading is there."""

    name: ClassVar[str] = "look"
    layer: int = 3
    keep: int = 1
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    stage = "decoder"
    signals = (AHEAD,)
    adaptive_count = True
    ragged = True

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        self.seen.append((tokens.read(AHEAD), tokens.ids))
        columns = torch.arange(tokens.ids.shape[1]).expand(len(tokens.counts), -1)
        return torch.where(tokens.valid, columns, -1)


def rows_equal(look: Look, report: Any, weights: Tensor, last: Tensor | None = None) -> None:
    """What `look` saw against an eager layer's `weights` `[B, H, Q, K]` on the tokens that are `report`ed before it."""
    seen, ids = look.seen[-1]
    assert seen.dtype == torch.float32
    assert seen.shape[:3] == (len(report.spans), weights.shape[1], 1)
    for row, span in enumerate(report.spans):
        b, kept = span.sample, ids[row][ids[row] >= 0]
        query = -1 if last is None else int(last[b])
        want = weights[b, :, query][:, span.columns[kept]]
        assert (seen[row, :, 0, : len(kept)] - want).abs().max() < 1e-4
        assert (seen[row, :, 0, len(kept) :] == 0).all()
