"""One forward of a bare vision transformer under pruning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.models.layout.layouts_by_family import pair
from vtc.models.layout.vision_call_record import VisionStep
from vtc.models.selection.select import select_tokens
from vtc.pruners.base import Pruner, Stop, resolve_keep
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import EncoderAttention, EncoderSegments, EncoderSpecial, Signal
from vtc.pruners.visual_tokens import SignalSource, VisualTokens

from .captures_needed import kind_of, layer_of


class VitRun(SignalSource):
    """One forward: which patches are left, and what was captured (`[B, n, ...]` with the ids of that moment)."""

    def __init__(self, vit: Any, x: Tensor, prefix: int, class_token: bool, depth: int):
        self.prefix, self.class_token, self.depth = prefix, class_token, depth
        self.total = x.shape[1] - self.prefix
        self.ids = torch.arange(self.total, device=x.device).expand(len(x), -1)
        self.steps: list[VisionStep] = []
        self.captured: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self.layer = 0
        self.size: Tensor | None = None  # `[B, n]`, once tokens were merged
        patches = getattr(vit, "patch_embed", None)
        grid = getattr(vit, "grid_size", None) or getattr(patches, "grid_size", None)
        rows, cols = pair(grid) if grid is not None else (0, 0)
        known = rows * cols == self.total
        self.layout = Layout((Grid(rows, cols),)) if known else Layout.line(self.total)

    def capture(self, kind: str, layer: int, values: Tensor) -> None:
        """Store `[B, prefix + n, ...]` and whose they are."""
        self.captured[kind, layer] = (values, self.ids)

    def prune(self, pruner: Pruner, stop: Stop, layer: int, x: Tensor) -> Tensor:
        """Drop what `pruner` does not choose of the block's input `[B, prefix + n, D]`."""
        assert stop.keep is not None
        batch, present = self.ids.shape
        budget = min(present, resolve_keep(stop.keep, self.total))
        if budget < present:
            self.layer = layer
            tokens = VisualTokens(
                features=x[:, self.prefix :],
                ids=self.ids,
                counts=[present] * batch,
                budgets=[budget] * batch,
                layouts=[self.layout] * batch,
                sample=torch.arange(batch, device=x.device),
                order=[0] * batch,
                span=range(batch),
                stage="vision",
                layer=layer,
                last=self.depth - 1,
                size=self.size,
                source=self,
            )
            columns, vectors, weights = select_tokens(pruner, tokens)
            kept = torch.stack(list(columns))
            if weights[0] is not None:
                self.size = torch.stack([w for w in weights if w is not None]).float()
            elif self.size is not None:
                self.size = self.size.gather(1, kept)
            self.ids = self.ids.gather(1, kept)
            kept = torch.cat([torch.arange(self.prefix, device=x.device).expand(batch, -1), kept + self.prefix], 1)
            x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
            if vectors[0] is not None:
                made = torch.stack([v for v in vectors if v is not None])
                x = torch.cat([x[:, : self.prefix], made.to(x)], 1)
        self.steps.append(VisionStep(layer, list(self.ids)))
        return x

    def read(self, signal: Signal, tokens: VisualTokens) -> Tensor:
        """See ``VisualTokens.read``."""
        if isinstance(signal, EncoderSegments):
            return torch.zeros(*tokens.ids.shape, 1, 1, dtype=torch.long, device=tokens.ids.device)
        values, ids = self.captured[kind_of(signal, self.class_token), layer_of(signal, self.layer - 1, self.depth)]
        span = torch.tensor(list(tokens.span), device=ids.device)
        if isinstance(signal, EncoderSpecial):
            return values[span, : self.prefix if self.class_token else 0].transpose(1, 2)
        values = values[:, self.prefix :]
        place = torch.zeros(len(ids), self.total, dtype=torch.long, device=ids.device)
        place = place.scatter(1, ids, torch.arange(ids.shape[1], device=ids.device).expand_as(ids))[span]
        column = place.gather(1, tokens.ids)
        column = column.view(*column.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
        found = values[span].gather(1, column)
        return found.transpose(1, 2) if isinstance(signal, EncoderAttention) else found

    def text(self, signal: Signal) -> Tensor:
        """A bare ViT has no text."""
        raise NotImplementedError("a bare ViT has no text")
