"""Runs a method over the spans of a batch: groups what it can't take ragged, and checks what it gives back."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vtc.pruners.base import Merged, Pruner, VisualTokens


def select_tokens(pruner: Pruner, tokens: VisualTokens) -> tuple[list[Tensor], list[Tensor | None]]:
    """Ask `pruner` what each row keeps.

    Parameters
    ----------
    pruner : Pruner
        The method.
    tokens : VisualTokens
        Rows whose budget is below their count.

    Returns
    -------
    columns : list of Tensor
        Per row the kept columns, sorted, `[k_i]` int64.
    features : list of Tensor or None
        Per row the new vectors `[k_i, D]` in the same order where the method merges, else None.

    Raises
    ------
    TypeError, ValueError
        If the method returns something of another type or shape than the contract says.
    """
    rows = len(tokens.counts)
    columns: list[Tensor | None] = [None] * rows
    features: list[Tensor | None] = [None] * rows
    for group in _groups(pruner, tokens):
        part = take_rows(tokens, group)
        k = max(part.budgets)
        found = pruner.select(part, k)
        index, merged = (found.index, found.features) if isinstance(found, Merged) else (found, None)
        if not isinstance(index, Tensor) or index.dtype != torch.int64:
            raise TypeError(
                f"{pruner.name}.select must return an int64 tensor, got {getattr(index, 'dtype', type(index))}"
            )
        if index.dim() != 2 or index.shape[0] != len(group) or index.shape[1] < k:
            raise ValueError(f"{pruner.name}.select must return [{len(group)}, {k}], got {list(index.shape)}")
        for j, row in enumerate(group):
            size = part.budgets[j]
            if pruner.adaptive_count:
                size = int((index[j] >= 0).sum())  # an adaptive count is data: this is its one sync
            order = index[j, :size].sort()
            columns[row] = order.values
            if merged is not None:
                features[row] = merged[j, :size][order.indices]
    return [c for c in columns if c is not None], features


def _groups(pruner: Pruner, tokens: VisualTokens) -> list[list[int]]:
    rows = range(len(tokens.counts))
    if pruner.ragged:
        return [list(rows)]
    groups: dict[tuple[int, int], list[int]] = {}
    for i in rows:
        groups.setdefault((tokens.counts[i], tokens.budgets[i]), []).append(i)
    return list(groups.values())


def take_rows(tokens: VisualTokens, rows: list[int]) -> VisualTokens:
    """The rows `rows` of `tokens`, cut to their longest."""
    if len(rows) == len(tokens.counts):
        return tokens
    width = max(tokens.counts[i] for i in rows)
    pick = torch.tensor(rows, device=tokens.ids.device)
    return replace(
        tokens,
        features=tokens.features[pick, :width],
        ids=tokens.ids[pick, :width],
        counts=[tokens.counts[i] for i in rows],
        budgets=[tokens.budgets[i] for i in rows],
        layouts=[tokens.layouts[i] for i in rows],
        sample=tokens.sample[pick],
        order=[tokens.order[i] for i in rows],
        span=[tokens.span[i] for i in rows],
    )
