"""Attention masks from slots: one rule for padding, ragged keeps, several pruning layers, windows, beams and turns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.models.layout.spans import readable
from vtc.models.stock.attention_api import additive, attention_kind, interface_mask


def slot_mask(
    config: Any,
    queries: Tensor,
    keys: Tensor,
    dtype: torch.dtype,
    padded: bool,
    window: int | None = None,
    pattern: tuple[Any, int, Tensor] | None = None,
    prompt: int = 0,
) -> Any:
    """Mask for queries at original slots over keys at original slots.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the text model; its attention implementation decides the mask's form.
    queries, keys : Tensor
        `[B, Q]` and `[B, K]` int64; -1 is padding, or a key that only its own query sees. The last `Q` keys are the
        queries' own.
    dtype : torch.dtype
        Of the additive mask that eager attention wants.
    padded : bool
        Whether any slot is -1.
    window : int, optional
        Sliding window, counted in ORIGINAL positions.
    pattern : tuple of (BlockMask, int, Tensor), optional
        Flex attention's own mask between the new columns, in front of which it has that many others, and the `[B, Q]`
        columns of it that are left, -1 for padding.
    prompt : int
        Keys at slots before this one are seen whatever the window.

    Returns
    -------
    Tensor, BlockMask or None
        None where plain causal attention is right, which keeps the fast kernels.
    """
    kind = attention_kind(config)
    (batch, n_query), n_key = queries.shape, keys.shape[1]
    if "flash" in kind:  # flash takes 2D padding; its window counts kept tokens
        return (keys >= 0) if padded else None
    # only sdpa reads "no mask" as causal; flex would attend to everything
    if not padded and window is None and pattern is None and (n_query == 1 or (n_query == n_key and kind == "sdpa")):
        return None

    def allowed(b: Any, h: Any, q: Any, k: Any) -> Any:
        key, query = keys[b, k], queries[b, q]
        ok = (key >= 0) & (key <= query)
        if window is not None:
            ok = ok & ((key > query - window) | (key < prompt))
        if pattern is not None:
            (mask, before, columns), own = pattern, k - (n_key - n_query)
            place = columns[b, own.clamp(min=0)].clamp(min=0)
            seen = mask.mask_mod(b, h, columns[b, q].clamp(min=0), before + place) & (key >= 0) & (query >= 0)
            ok = torch.where(own >= 0, seen, ok)
        # every query sees itself: rows without any key are NaN on some kernels
        return ok | (k - (n_key - n_query) == q)

    if kind in ("sdpa", "eager"):
        device = queries.device
        b = torch.arange(batch, device=device)[:, None, None]
        q = torch.arange(n_query, device=device)[None, :, None]
        mask = allowed(b, None, q, torch.arange(n_key, device=device)[None, None, :])[:, None]
        return additive(mask, dtype) if kind == "eager" else mask
    return interface_mask(config, kind, allowed, batch, n_query, n_key, dtype, queries.device)


def padding_mask(slots: Tensor, padded: bool) -> Tensor | None:
    """What a recurrent layer takes as its mask: `[B, L]`, 0 for padding (slots of -1); None where there is none."""
    return (slots >= 0).long() if padded else None


def keeps_pattern(mask: Any, length: int) -> bool:
    """Whether `mask` is a square mask over `length` columns with a pattern of its own, to be gathered, not rebuilt."""
    if isinstance(mask, Tensor):
        return mask.dim() == 4 and mask.shape[-2:] == (length, length)
    return hasattr(mask, "mask_mod")


def gather_mask(mask: Any, columns: Tensor, config: Any, keys: Tensor) -> Any:
    """Rows `columns` `[B, n]` (-1: padding) and columns `keys` `[B, m]` of a mask `[B, H, L, K]` or flex ``BlockMask``.

    The last `n` of `keys` are the queries' own; those of -1 are seen by their own query only.
    """
    batch, n = columns.shape
    if not isinstance(mask, Tensor):
        index = columns.clamp(min=0)

        def rule(b: Any, h: Any, q: Any, k: Any) -> Any:
            pad = (columns[b, q] < 0) | (keys[b, k] < 0)
            return (mask.mask_mod(b, h, index[b, q], index[b, k]) & ~pad) | (pad & (q == k))

        kind = attention_kind(config)
        return interface_mask(config, kind, rule, batch, n, n, torch.float32, columns.device)
    index = columns.clamp(min=0).to(mask.device)
    heads, length, m = mask.shape[1], mask.shape[-1], keys.shape[1]
    mask = mask.expand(batch, -1, -1, -1)
    mask = mask.gather(2, index[:, None, :, None].expand(batch, heads, n, length))
    mask = mask.gather(3, keys.clamp(min=0).to(mask.device)[:, None, None, :].expand(batch, heads, n, m))
    hidden = (keys < 0).to(mask.device)[:, None, None, :]
    off = (columns < 0).to(mask.device)[:, None, :, None] | hidden
    own = torch.eye(n, dtype=torch.bool, device=mask.device)
    own = torch.nn.functional.pad(own, (m - n, 0)) & hidden
    if mask.dtype == torch.bool:
        return (mask & ~off) | own
    return mask.masked_fill(off, torch.finfo(mask.dtype).min).masked_fill(own, 0.0)


def valid_columns(mask: Any, batch: int, length: int, device: torch.device, past: int | None = None) -> Tensor | None:
    """`[B, length]` bool: columns that are no padding, from whatever mask a text model was given; None: all.

    Of a mask over all that a static cache may hold, the columns behind `past` are meant.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        return None
    if mask.dim() == 2:
        return mask[:, -length:].bool().to(device)
    if past is not None:
        mask = mask[..., past : past + length]
    mask = mask.expand(batch, -1, -1, -1)[:, 0, -length:, -length:]
    # a padding key is masked even for itself
    return torch.diagonal(mask if mask.dtype == torch.bool else mask == 0, dim1=1, dim2=2).to(device)


def past_columns(mask: Any, past: int, length: int, device: torch.device) -> Tensor | None:
    """`[B, past]` bool: of the columns before the newest `length`, those that are no padding; None: all, or unknown."""
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] < past + length or not readable(mask):
        return None
    valid = mask[:, mask.shape[1] - past - length : mask.shape[1] - length].bool()
    return None if bool(valid.all()) else valid.to(device)


def calibrated(
    mask: Tensor | None, rotary: Any, counted: Tensor, asks: Tensor, keys: int, dtype: torch.dtype
) -> Tensor:
    """The additive mask of a prompt's layer in which tokens of pruned spans are seen as so many more and nearer ones.

    Parameters
    ----------
    mask : Tensor or None
        `[B, 1, Q, K]` bool or additive, None: causal.
    rotary : tuple of Tensor, Tensor or None
        Cosines and sines, or complex numbers, of the `Q` columns, `[B, Q, d]`; None: the layer knows no positions.
    counted : Tensor
        `[B, Q]` float32: how many tokens such a column stands for; 0: it is none.
    asks : Tensor
        `[B, Q]` bool: the queries that see them so.
    keys : int
        K; the last `Q` are the queries' own.
    dtype : torch.dtype
        Of the queries.
    """
    n, device = counted.shape[1], counted.device
    more = counted.log()[:, None]
    if rotary is not None:
        parts = (rotary.real, rotary.imag) if isinstance(rotary, Tensor) else rotary
        with torch.autocast(device.type, enabled=False):
            unit = torch.nn.functional.normalize(torch.cat([x.to(device, torch.float32) for x in parts], -1), dim=-1)
            closeness = unit @ unit.mT  # the mean cosine of differences, as of all of length 1
        more = more + (2 - closeness).clamp(min=1).log()
    more = torch.where(asks[:, :, None] & (counted > 0)[:, None], more, 0)
    if mask is None:
        mask = torch.ones(n, keys, dtype=torch.bool, device=device).tril(keys - n)[None, None]
    if mask.dtype == torch.bool:
        mask = additive(mask, dtype)
    more = torch.nn.functional.pad(more, (keys - n, 0))[:, None].to(mask.device, mask.dtype)
    return torch.where(mask <= torch.finfo(mask.dtype).min / 2, mask, mask + more)
