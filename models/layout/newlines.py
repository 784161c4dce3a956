"""Newline tokens (LLaVA-NeXT, LLaVA-OneVision) are no image content: no method sees them.

They go as soon as their span is pruned, except that they fill up a budget that exceeds the number of content tokens, so
that counts stay exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.pruners.layout import Layout


def fill_with_newlines(content: Tensor, layout: Layout, budget: int) -> Tensor:
    """What a span keeps whose budget is not below its content: all of that, and its first newlines.

    Parameters
    ----------
    content : Tensor
        `[n]` ids of the span's content tokens, `n <= budget`.
    layout : Layout
        Of the span.
    budget : int
        How many tokens it keeps.

    Returns
    -------
    Tensor
        `[budget]` ids, ascending.
    """
    spare = budget - len(content)
    newlines = torch.tensor(layout.newline_ids[:spare], device=content.device, dtype=torch.long)
    return torch.cat([content, newlines]).sort().values
