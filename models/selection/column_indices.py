"""Picking, finding and writing columns of `[B, L, D]` by their indices, -1 being padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gather_columns(x: Tensor, columns: Tensor, dim: int) -> Tensor:
    """Pick `columns` `[B, n]` along the negative dimension `dim` of `x`, whose batch dimension stands right before it.

    A missing or broadcast batch dimension is expanded; columns of -1 (padding) give column 0's values.
    """
    batch = len(columns)
    if x.dim() == -dim:
        x = x[None]
    where = x.dim() + dim
    if x.shape[where - 1] == 1 and batch > 1:
        x = x.expand(*x.shape[: where - 1], batch, *x.shape[where:])
    picked: list[Any] = [slice(None)] * (where - 1)
    picked += [torch.arange(batch, device=x.device)[:, None], columns.clamp(min=0).to(x.device)]
    return x[tuple(picked)]  # not a gather, which takes three to seven times as long on the CPU


def main_stream(hidden: Tensor) -> Tensor:
    """The hidden states `[B, L, D]` of layers, or the first of several `[n, B, L, D]` (Gemma 3n's AltUp)."""
    return hidden if hidden.dim() == 3 else hidden[0]


def places(columns: Tensor, length: int) -> Tensor:
    """`[B, length]`: where in `columns` `[B, n]` (-1 is padding) each of 0 .. length-1 stands, -1 where it is gone."""
    rows, n = columns.shape
    place = torch.full((rows, length + 1), -1, device=columns.device)
    index = torch.where(columns < 0, length, columns)
    return place.scatter_(1, index, torch.arange(n, device=place.device).expand(rows, n))[:, :length]


def all_ids(lengths: list[int], device: torch.device) -> Tensor:
    """`[S, N]`: 0 .. n-1 for each span, -1 is padding."""
    ids = torch.arange(max(lengths, default=0), device=device).expand(len(lengths), -1)
    return torch.where(ids < torch.tensor(lengths, device=device, dtype=torch.long)[:, None], ids, -1)


def mark(mask: Tensor, samples: Tensor, columns: Tensor, length: int, value: Any) -> None:
    """Set `mask[samples[s], columns[s, j]]`, padding to the dummy column `length`."""
    flat = samples[:, None] * (length + 1) + torch.where(columns < 0, length, columns)
    mask.view(-1).scatter_(0, flat.reshape(-1), value)


def write(hidden: Tensor, samples: Tensor, columns: Tensor, vectors: Tensor) -> Tensor:
    """`hidden` with `vectors [S, n, D]` at (`samples`, `columns`), padding left out, without a host sync."""
    rows, length, width = hidden.shape
    flat = samples[:, None] * (length + 1) + torch.where(columns < 0, length, columns)
    padded = torch.cat([hidden, hidden.new_zeros(rows, 1, width)], 1).reshape(-1, width)
    out = padded.scatter(
        0, flat.reshape(-1, 1).to(hidden.device).expand(-1, width), vectors.reshape(-1, width).to(hidden)
    )
    return out.view(rows, length + 1, width)[:, :length]
