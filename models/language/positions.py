"""Position ids of what is left of a prompt: as they were, or counted anew without gaps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtc.models.cache.kv_cache import first_columns, slot_layer
from vtc.models.layout.spans import last_valid
from vtc.models.selection.column_indices import gather_columns
from vtc.models.stock.call_arguments import Call
from vtc.pruners.vtc_warning import VTCWarning

from .forward_state import Run


def several_axes(config: Any) -> bool:
    """Whether a text model's rotary embeddings take positions of several axes (m-RoPE and its kin)."""
    return any(key.endswith("rope_section") for key in getattr(config, "rope_parameters", None) or {})


def positions_of(run: Run, call: Call) -> Tensor:
    """Positions of all columns of a forward, as the text model was given them or would count them itself."""
    positions = call.get("positions")
    if positions is not None:
        return positions
    return (torch.arange(run.full, device=run.columns.device) + run.past)[None]


def warn_window(windows: Sequence[int | None], length: int) -> bool:
    """Say, where a sequence is longer than a window, that an engine with compact positions has another one; whether."""
    window = min((w for w in windows if w is not None), default=length)
    if length <= window:
        return False
    warnings.warn(
        f"positions='compact': this sequence has {length} tokens, dropped ones included, and some layers see {window} "
        "back. vtc counts dropped tokens there, as the model was trained; an engine that holds kept tokens only sees "
        f"further, and its answers may be others. Up to {window} tokens both are the same",
        VTCWarning,
        stacklevel=2,
    )
    return True


def positions_left(run: Run, call: Call, compact: bool, shift: Tensor | None) -> Tensor:
    """Positions of the columns that are left.

    Parameters
    ----------
    run : Run
        A pruned forward.
    call : Call
        Of the text model.
    compact : bool
        Whether they are renumbered without gaps; the first cache layer with columns then notes how far back the next
        token comes.
    shift : Tensor, optional
        `[B]`, what it has noted before.
    """
    whole = positions_of(run, call)
    positions = gather_columns(whole, run.columns, -1)
    if not compact:
        return positions
    if positions.dim() != 2:
        raise ValueError("positions='compact' is not defined for multi-dimensional rotary embeddings; use 'keep'")
    real = run.slots >= 0
    # what goes first leaves no gap behind an earlier turn
    start = torch.where(run.valid, whole, torch.iinfo(whole.dtype).max).amin(1, keepdim=True)
    found = torch.where(real, real.long().cumsum(1) - 1 + start, 0)
    if run.cache is not None:
        # the next token follows the last one left, though the prompt may go on behind it
        last = last_valid(run.valid, len(run.valid), run.full, whole.device)[:, None]
        gap = gather_columns(whole, last, -1)[:, 0] - found.amax(1)
        slot_layer(run.cache, first_columns(run.cache)).shift = gap if shift is None else shift + gap
    return found
