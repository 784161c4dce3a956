"""Encoder signals of one attention call: rows per patch, from queries, keys and values, whatever kernel runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.models.stock.attention_taps import attention_rows

from .packed_segments import ROWS, Segments, allowed_pairs, received_attention


def encoder_rows(
    kind: str, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, segments: Segments | None = None
) -> Tensor:
    """What ``kind_of`` calls `kind`, of one attention call.

    Parameters
    ----------
    kind : str
        Everything but ``"features"`` and ``"projector"``, which are no matter of attention.
    query, key, value : Tensor
        `[B, H, T, d]`, the latter two `[B, H_kv, T, d]`.
    mask : Tensor, BlockMask or None
        What the layer got.
    scaling : float
        Factor on the logits.
    segments : Segments, optional
        Of a packed row (`B` = 1).

    Returns
    -------
    Tensor
        `[B, T, C]`: heads as channels for attention.
    """
    if key.shape[1] < query.shape[1]:  # grouped heads: each as often as queries read it
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    side_by_side = {"queries": query, "keys": key, "values": value}.get(kind)
    if side_by_side is not None:
        return side_by_side.transpose(1, 2).flatten(2)
    if kind in ("mean keys", "mean values"):
        return (key if kind == "mean keys" else value).float().mean(1)
    if kind.startswith("joint "):
        kind = kind.removeprefix("joint ")
        query, key, value = (x.transpose(1, 2).flatten(2)[:, None] for x in (query, key, value))
        scaling = query.shape[-1] ** -0.5
    queries, _, of_values = kind.partition(" of ")
    if of_values:
        query = key = value.float()
        scaling = 1.0
    if queries == "none":
        return query.new_zeros(query.shape[0], query.shape[2], 1)
    rows = {
        "received": received_attention,
        "cls": cls_attention,
        "cls logits": cls_logits,
        "mean": mean_attention,
    }[queries]
    return rows(query, key, mask, scaling, segments).transpose(1, 2)


def cls_logits(query: Tensor, key: Tensor, mask: Any, scaling: float, segments: Segments | None = None) -> Tensor:
    """The same as ``cls_attention`` before the softmax."""
    return cls_attention(query, key, mask, scaling, segments, softmax=False)


def cls_attention(
    query: Tensor, key: Tensor, mask: Any, scaling: float, segments: Segments | None = None, softmax: bool = True
) -> Tensor:
    """The class token's attention row, `[B, H, T]`, or `[1, H, M]` of a packed row whose segments begin with theirs."""
    if segments is None:
        chunks = [(query, key)]
    else:
        chunks = segments.split(query, key)  # type: ignore[assignment]
        mask = segments.real[:, None, None] if segments.pieces is None else None
    found = []
    for q, k in chunks:
        first = torch.zeros(q.shape[0], 1, dtype=torch.long, device=q.device)
        seen = None if mask is None else mask.expand(-1, -1, q.shape[2], -1)
        found.append(attention_rows(q, k, seen, scaling, first, causal=False, softmax=softmax)[:, :, 0])
    return found[0] if segments is None else segments.join([f[..., None] for f in found])[..., 0]


def mean_attention(query: Tensor, key: Tensor, mask: Any, scaling: float, segments: Segments | None = None) -> Tensor:
    """The row of each segment's mean query, `[B, H, T]` float32, as a multiple of the average key's attention."""
    if segments is None:
        if mask is not None:
            return _mean_of_seen(query, key, mask, scaling)
        return _mean_row(query, key, None, scaling)
    real = segments.real.to(query.device)[:, None] if segments.pieces is None else None
    found = [_mean_row(q, k, real, scaling)[..., None] for q, k in segments.split(query, key)]
    return segments.join(found)[..., 0]


def _mean_row(query: Tensor, key: Tensor, real: Tensor | None, scaling: float) -> Tensor:
    """The same of padded rows: `real [B, 1, T]` bool is False at padding."""
    if real is None:
        mean, count = query.float().mean(2), torch.full((), float(key.shape[2]), device=key.device)
    else:
        count = real.sum(-1, keepdim=True).clamp(min=1)
        mean = (query.float() * real[..., None]).sum(2) / count
    logits = (key.float() @ mean[..., None])[..., 0] * scaling
    if real is not None:
        logits = logits.masked_fill(~real, torch.finfo(logits.dtype).min)
    return logits.softmax(-1) * count


def _mean_of_seen(query: Tensor, key: Tensor, mask: Any, scaling: float) -> Tensor:
    """The same where a mask says which queries see a key (padded rows, several pictures in a row)."""
    seen = allowed_pairs(mask, query, key)
    assert seen is not None
    length = key.shape[2]
    seen = seen.expand(-1, -1, length, -1)
    real = seen.any(2)[:, :, None].float()  # a query that nobody may see as a key is padding
    found = []
    for start in range(0, length, ROWS):
        some = slice(start, start + ROWS)
        who = seen[..., some].transpose(2, 3) * real
        mean = who @ query.float() / who.sum(-1, keepdim=True).clamp(min=1)
        logits = (mean @ key.float().transpose(2, 3)) * scaling
        logits = logits.masked_fill(~seen[:, :, some], torch.finfo(logits.dtype).min)
        own = logits.softmax(-1).diagonal(start, -2, -1)
        found.append(own * seen[:, :, some].sum(-1))
    return torch.cat(found, -1)
