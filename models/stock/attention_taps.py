"""Sees queries and keys of one attention module, whatever attention implementation the model runs.

The tapped module gets a view of its config whose implementation names a registered function. That function hands
query, key, value and mask (after rotary embedding and norms) to the tap and then delegates to the implementation that
the model uses by then. Nothing switches to eager, and masks are built from the model's own, untouched config.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .attention_api import ConfigView, attention_function, attention_kind

PREFIX = "vtc_tap_"
Recorder = Callable[[nn.Module, Tensor, Tensor, Tensor, "Tensor | None", float], "Tensor | None"]


def _tapped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    tap: AttentionTap = module.__dict__["_vtc_tap"]
    with torch.no_grad():  # a choice needs no gradient, and a checkpoint's second forward does not record again
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        instead = tap.recorder(module, query, key, value, attention_mask, scale)
    if instead is not None:
        return instead, None
    run = attention_function(attention_kind(tap.config), tap.eager)
    if scaling is not None:
        kwargs["scaling"] = scaling
    return run(module, query, key, value, attention_mask, **kwargs)


class AttentionTap:
    """Calls `recorder(module, query, key, value, mask, scaling)` at every forward of one attention module.

    Parameters
    ----------
    attention : nn.Module
        A transformers attention module (it reads ``self.config._attn_implementation`` at call time).
    recorder : callable
        Gets query `[B, H, Q, d]`, key and value `[B, H_kv, K, d]`, the mask as the layer got it, and the scaling. If
        it returns a tensor `[B, Q, H, d]`, that is the attention's output, and attention itself is not run.
    """

    def __init__(self, attention: Any, recorder: Recorder):
        self.attention, self.recorder = attention, recorder

    def attach(self) -> AttentionTap:
        """Start listening."""
        self.config: Any = self.attention.config
        self.eager: Any = getattr(sys.modules[type(self.attention).__module__], "eager_attention_forward", None)
        self.attention.config = ConfigView(self.config, PREFIX, _tapped)
        self.attention.__dict__["_vtc_tap"] = self
        return self

    def pause(self) -> None:
        """Give the module its own config object back until ``resume``."""
        self.attention.config = self.config

    def resume(self) -> None:
        """Listen again, under the config that the module has by now."""
        self.config = self.attention.config
        self.attention.config = ConfigView(self.config, PREFIX, _tapped)

    def detach(self) -> None:
        """Stop listening; the module has its own config object again."""
        self.attention.config = self.config
        self.attention.__dict__.pop("_vtc_tap", None)


def attention_rows(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float,
    rows: Tensor,
    causal: bool = True,
    softmax: bool = True,
) -> Tensor:
    """Softmax attention of the asked queries only.

    Parameters
    ----------
    query, key : Tensor
        `[B, H, Q, d]` and `[B, H_kv, K, d]` (grouped heads are not repeated in memory).
    mask : Tensor or None
        What the layer got: 4D bool or additive, 2D padding (flash), a flex ``BlockMask``, or None.
    scaling : float
        Factor on the logits.
    rows : Tensor
        `[B, R]` query columns.
    causal : bool
        Whether a missing mask means causal.
    softmax : bool
        Else the logits, -inf where masked.

    Returns
    -------
    Tensor
        `[B, H, R, K]` float32.
    """
    batch, heads, n_query, dim = query.shape
    n_key, kv_heads, n_rows = key.shape[2], key.shape[1], rows.shape[1]
    rows = rows.to(query.device)
    picked = query.gather(2, rows[:, None, :, None].expand(batch, heads, n_rows, dim))
    picked = picked.reshape(batch, kv_heads, heads // kv_heads * n_rows, dim)
    logits = (picked @ key.transpose(2, 3)).reshape(batch, heads, n_rows, n_key).float() * scaling
    if isinstance(mask, Tensor) and mask.dim() == 4:
        mask = mask[..., :n_key].expand(batch, -1, n_query, -1)
        mask = mask.gather(2, rows[:, None, :, None].expand(batch, mask.shape[1], n_rows, n_key))
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    elif mask is not None and not isinstance(mask, Tensor):  # flex attention: ask its own predicate
        allowed = _block_mask_rows(mask, rows, n_key)
        logits = logits.masked_fill(~allowed, float("-inf"))
    elif causal:
        last = rows + (n_key - n_query)
        future = torch.arange(n_key, device=query.device) > last[:, None, :, None]
        logits = logits.masked_fill(future, float("-inf"))
        if isinstance(mask, Tensor):  # 2D padding mask
            logits = logits.masked_fill(~mask[:, None, None, :n_key].bool(), float("-inf"))
    return logits.softmax(-1) if softmax else logits


def largest_of_heads(query: Tensor, key: Tensor, mask: Any, scaling: float, rows: Tensor) -> Tensor:
    """The largest of ``attention_rows`` over heads, `[B, 1, R, K]`, with one group of heads in memory at a time."""
    groups = key.shape[1]
    found: Tensor | None = None
    for i, some in enumerate(query.chunk(groups, 1)):
        by_head = isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[1] > 1
        seen = mask.chunk(groups, 1)[i] if by_head else mask
        one = attention_rows(some, key[:, i : i + 1], seen, scaling, rows).amax(1, keepdim=True)
        found = one if found is None else torch.maximum(found, one)
    assert found is not None
    return found


def _block_mask_rows(mask: Any, rows: Tensor, n_key: int) -> Tensor:
    batch = torch.arange(rows.shape[0], device=rows.device)[:, None, None]
    head = torch.zeros((), dtype=torch.long, device=rows.device)
    allowed = mask.mask_mod(batch, head, rows[:, :, None], torch.arange(n_key, device=rows.device)[None, None, :])
    return allowed[:, None]
