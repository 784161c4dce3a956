"""What goes after each layer within a bound on how much attention of picture and text goes with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.api import compressed
from vtc.eval.vlm.encode_once import encode, encoder_inputs, reuses_encoder, to_device
from vtc.eval.vlm.prompts import Row
from vtc.pruners.base import Pruner, Stop
from vtc.pruners.fitprune import FitPrune, spent
from vtc.pruners.signals import Signal
from vtc.pruners.visual_tokens import VisualTokens


@dataclass(kw_only=True)
class Within(Pruner):
    """Drops after each layer what both picture and text look at least, within `bound`; all stay where it is None.

    What they spend without it is noted, by layer and span, for the forwards of the same prompt after it.
    """

    stage: ClassVar[str] = "decoder"
    signals: ClassVar[tuple[Signal, ...]] = FitPrune.signals
    adaptive_count: ClassVar[bool] = True
    uses_text: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.bound: float | None = None
        self.whole: dict[tuple[int | None, int], Tensor] = {}

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """Before each layer but the first."""
        return tuple(Stop(self.stage, layer, 1) for layer in range(1, depth))

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """The columns that stay, -1 elsewhere, `[B, N]`."""
        picture, text = (torch.where(tokens.valid, x.double(), 0) for x in spent(tokens))
        counts = torch.tensor(list(tokens.counts), device=picture.device, dtype=picture.dtype)
        asking = counts.new_zeros(int(tokens.sample.max()) + 1).index_add(0, tokens.sample, counts)[tokens.sample]
        spending = torch.stack([picture / asking[:, None], text])
        stays = tokens.valid
        if self.bound is None:
            totals = spending.sum(-1).unbind(1)
            self.whole.update({(tokens.layer, span): of for span, of in zip(tokens.span, totals, strict=True)})
        else:
            whole = torch.stack([self.whole[tokens.layer, span] for span in tokens.span], 1)
            stays = stays & ~can_go(spending, stays, (1 - self.bound) * whole).all(0)
        return torch.where(stays, torch.arange(stays.shape[1], device=stays.device), -1)


def can_go(spending: Tensor, valid: Tensor, least: Tensor) -> Tensor:
    """Which tokens `[2, B, N]` go of the least looked at on, as long as the others are given `least` `[2, B]`.

    Parameters
    ----------
    spending : Tensor
        `[2, B, N]`, what picture and text spend on each token, zero for padding.
    valid : Tensor
        `[B, N]` bool, False is padding.
    least : Tensor
        `[2, B]`.
    """
    order = spending.masked_fill(~valid, float("inf")).sort(dim=-1, stable=True).indices
    left = spending.sum(-1, keepdim=True) - spending.gather(-1, order).cumsum(-1)
    return torch.zeros_like(spending, dtype=torch.bool).scatter(-1, order, left >= least[..., None])


@torch.no_grad()
def left_after_layers(model: nn.Module, row: Row, bounds: list[float]) -> Tensor:
    """Shares of a prompt's visual tokens that are left after each layer but the last, `[A, depth - 1]` float64.

    Parameters
    ----------
    model : nn.Module
        The plain model.
    row : Row
        The question with its picture.
    bounds : list of float
        `A` of them.
    """
    seen = encoder_inputs([row], [encode(model, row)], model) if row.visual and reuses_encoder(model) else row.vision
    inputs = {name: to_device(value, model) for name, value in {**row.text, **seen}.items()}
    within, found = Within(), []
    with compressed(model, within) as wrapped:
        wrapped(**inputs, use_cache=False)
        for within.bound in bounds:
            wrapped(**inputs, use_cache=False)
            report: Any = wrapped.vtc.report  # type: ignore[union-attr]
            of = torch.tensor([len(span.columns) for span in report.spans])
            kept = torch.tensor([[len(ids) for ids in step.kept] for step in report.steps])
            found.append((kept / of.double()).mean(1))
    return torch.stack(found)
