"""Attention of a pruned vision tower: many images (or windows) of different lengths in one row, each by itself.

Inside a pruned tower all rows are packed into one, `[1, M, D]`, so that norms and MLPs cost what is left and nothing is
padded. A registered attention function cuts the row up again. It is told how by the keyword ``vtc_segments`` of the
attention module, so that it holds in a checkpoint's second forward and in any thread; without it, it is the base's own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vtc.models.stock.attention_api import PACKED_KWARGS, ConfigView, attention_function, attention_kind
from vtc.models.stock.per_thread import ThreadState
from vtc.pruners.primitives.precision import decides_on_host

PREFIX = "vtc_segments_"
ROWS = 512  # queries at a time when only a mean over them is asked for


@dataclass
class Segments:
    """How a row of `M` tokens falls into segments.

    Attributes
    ----------
    ids : Tensor
        `[M]` int64: each token's segment, ascending.
    count : int
        Number of segments; some may be empty.
    width : int
        No segment is longer.
    lengths : list of int or None
        Their lengths, where the host knows them without asking the device.
    bias : Tensor or None
        `[M]`: what is added to the attention logits towards each token.
    """

    ids: Tensor
    count: int
    width: int
    lengths: list[int] | None = None
    bias: Tensor | None = None

    @cached_property
    def place(self) -> Tensor:
        """`[M]`: where each token stands in the padded form `[count * width]`."""
        sizes = torch.zeros(self.count, dtype=torch.long, device=self.ids.device)
        sizes = sizes.scatter_add(0, self.ids, torch.ones_like(self.ids))
        start = sizes.cumsum(0) - sizes
        return torch.arange(self.ids.shape[0], device=self.ids.device) + (self.ids * self.width - start[self.ids])

    @cached_property
    def real(self) -> Tensor:
        """`[count, width]` bool: False is padding of the padded form."""
        mask = torch.zeros(self.count * self.width, dtype=torch.bool, device=self.ids.device)
        return mask.scatter(0, self.place, True).view(self.count, self.width)

    @property
    def pieces(self) -> list[int] | None:
        """Lengths of the chunks to cut the row into; None where it is to be padded instead.

        On the CPU looking is free, and chunks are views, where the padded form is a copy of all queries, keys and
        values; elsewhere looking would wait for the device.
        """
        return self.lengths if self.lengths is not None or not decides_on_host(self.ids) else self._counted

    @cached_property
    def _counted(self) -> list[int]:
        return [n for n in torch.bincount(self.ids, minlength=self.count).tolist() if n]

    def split(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """`[1, H, M, d]` tensors as chunks `[S, H, L, d]`: one chunk if lengths are equal or unknown (then padded)."""
        pieces = self.pieces
        if pieces is None:
            return [tuple(self._pad(t) for t in tensors)]
        if len(set(pieces)) == 1:
            return [tuple(t[0].unflatten(1, (-1, pieces[0])).transpose(0, 1) for t in tensors)]
        return list(zip(*(t.split(pieces, 2) for t in tensors), strict=True))

    def join(self, chunks: list[Tensor]) -> Tensor:
        """The reverse of ``split`` for one tensor."""
        if self.pieces is None:
            flat = chunks[0].transpose(0, 1).flatten(1, 2)
            return flat.index_select(1, self.place.to(flat.device))[None]
        return torch.cat([c.transpose(0, 1).flatten(1, 2) for c in chunks], 1)[None]

    def _pad(self, x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[1], self.count * self.width, x.shape[3])
        out = out.index_copy(1, self.place.to(x.device), x[0])
        return out.unflatten(1, (self.count, self.width)).transpose(0, 1)


def _segmented(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    owner: SegmentedAttention = module.__dict__["_vtc_segments"]
    run, segments = attention_function(attention_kind(owner.config), owner.eager), owner.take()
    if segments is None:
        return run(module, query, key, value, attention_mask, **kwargs)
    kwargs = {k: v for k, v in kwargs.items() if k not in PACKED_KWARGS}
    chunks = []
    bias = None if segments.bias is None else segments.split(segments.bias.to(query)[None, None, :, None])
    for i, (q, k, v) in enumerate(segments.split(query, key, value)):
        mask = None if bias is None else bias[i][0].transpose(2, 3)  # [S, 1, 1, L]
        if segments.pieces is None:
            # an empty segment sees one zero key: no NaN, which would reach the gradients
            seen = segments.real.to(q.device)
            seen = torch.cat([seen[:, :1] | ~seen.any(1, keepdim=True), seen[:, 1:]], 1)[:, None, None]
            mask = seen if mask is None else mask.masked_fill(~seen, float("-inf"))
        if mask is not None:  # not every kernel takes one
            options = {"dropout_p": kwargs.get("dropout", 0.0), "scale": kwargs.get("scaling")}
            out = scaled_dot_product_attention(q, k, v, mask, **options, enable_gqa=k.shape[1] < q.shape[1])
        else:
            out = run(module, q, k, v, None, **kwargs)[0].transpose(1, 2)
        chunks.append(out)
    return segments.join(chunks).transpose(1, 2).contiguous(), None


class SegmentedAttention:
    """Makes one attention module heed the keyword ``vtc_segments``."""

    def __init__(self, attention: Any):
        self.attention = attention
        self._local: Any = ThreadState()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # not every attention module passes its keywords on, so they do not reach the function by themselves
        self._local.segments = kwargs.pop("vtc_segments", None)
        return args, kwargs

    def take(self) -> Segments | None:
        """The segments of the forward that runs in this thread, once."""
        segments, self._local.segments = getattr(self._local, "segments", None), None
        return segments

    def attach(self) -> SegmentedAttention:
        """Install; the module gets a view of its config with another implementation name."""
        self.config: Any = self.attention.config
        self.eager: Any = getattr(sys.modules[type(self.attention).__module__], "eager_attention_forward", None)
        self.attention.config = ConfigView(self.config, PREFIX, _segmented)
        self.attention.__dict__["_vtc_segments"] = self
        self.handle = self.attention.register_forward_pre_hook(self._enter, with_kwargs=True)
        return self

    def detach(self) -> None:
        """Give the module its own config object back."""
        self.handle.remove()
        self.attention.config = self.config
        self.attention.__dict__.pop("_vtc_segments", None)


def received_attention(
    query: Tensor, key: Tensor, mask: Any, scaling: float, segments: Segments | None = None
) -> Tensor:
    """Mean attention that each key receives from the queries that may see it.

    Parameters
    ----------
    query, key : Tensor
        `[B, H, L, d]`.
    mask : Tensor, BlockMask or None
        What the layer got.
    scaling : float
        Factor on the logits.
    segments : Segments, optional
        Of a packed row (`B` = 1).

    Returns
    -------
    Tensor
        `[B, H, L]` float32. Computed for some hundred queries at a time: no `L x L` matrix is kept.
    """
    if segments is None:
        return _received(query, key, allowed_pairs(mask, query, key), scaling)
    seen = None
    if segments.pieces is None:
        real = segments.real.to(query.device)
        seen = real[:, None, :, None] & real[:, None, None, :]
    chunks = [_received(q, k, seen, scaling)[..., None] for q, k in segments.split(query, key)]
    return segments.join(chunks)[..., 0]


def _received(query: Tensor, key: Tensor, seen: Tensor | None, scaling: float) -> Tensor:
    total = torch.zeros(*query.shape[:2], key.shape[2], device=query.device)
    for start in range(0, query.shape[2], ROWS):
        logits = (query[:, :, start : start + ROWS] @ key.transpose(2, 3)).float() * scaling
        if seen is None:
            total = total + logits.softmax(-1).sum(2)
            continue
        part = seen if seen.shape[2] == 1 else seen[:, :, start : start + ROWS]
        weights = logits.masked_fill(~part, torch.finfo(logits.dtype).min).softmax(-1)
        total = total + (weights * part).sum(2)
    if seen is None:
        return total / query.shape[2]
    return total / seen.expand(-1, -1, query.shape[2], -1).sum(2).clamp(min=1)


def allowed_pairs(mask: Any, query: Tensor, key: Tensor) -> Tensor | None:
    """`[B, 1, Q, K]` bool (or broadcastable) of whatever a bidirectional layer got as its mask."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor):  # flex attention: ask its own predicate
        rows = torch.arange(query.shape[0], device=query.device)[:, None, None]
        q = torch.arange(query.shape[2], device=query.device)[None, :, None]
        k = torch.arange(key.shape[2], device=query.device)[None, None]
        return mask.mask_mod(rows, torch.zeros((), dtype=torch.long, device=query.device), q, k)[:, None]
    if mask.dim() == 2:
        return mask[:, None, None, :].bool()
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
