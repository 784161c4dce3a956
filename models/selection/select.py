"""Runs a method over the spans of a batch: groups what it can't take ragged, and checks what it gives back."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.pruners.base import Lent, Merged, Pruner
from vtc.pruners.check_returned_values import looked_at
from vtc.pruners.visual_tokens import VisualTokens


def select_tokens(
    pruner: Pruner, tokens: VisualTokens
) -> tuple[list[Tensor], list[Tensor | None], list[Tensor | None]]:
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
    weights : list of Tensor or None
        Per row how many tokens each one stands for, `[k_i]`, where the method says so.

    Raises
    ------
    TypeError, ValueError
        If the method returns something of another type, shape or count than the contract says.
    """
    rows = len(tokens.counts)
    columns: list[Tensor | None] = [None] * rows
    features: list[Tensor | None] = [None] * rows
    weights: list[Tensor | None] = [None] * rows
    for group in _groups(pruner, tokens):
        part = tokens.take(group)
        k = max(part.budgets)
        with torch.autocast(part.ids.device.type, enabled=False):  # methods say themselves what they compute in
            found = pruner.select(part, k)
        index = found.index if isinstance(found, (Merged, Lent)) else found
        merged = found.features if isinstance(found, Merged) else None
        if not isinstance(index, Tensor) or index.dtype != torch.int64:
            raise TypeError(
                f"{pruner.spoken_name}.select must return an int64 tensor, got {getattr(index, 'dtype', type(index))}"
            )
        _check_merged(pruner, found, part)
        least = 1 if pruner.adaptive_count else k
        if index.dim() != 2 or index.shape[0] != len(group) or index.shape[1] < least:
            raise ValueError(f"{pruner.spoken_name}.select must return [{len(group)}, {k}], got {list(index.shape)}")
        sizes = _adaptive_sizes(pruner, index, part) if pruner.adaptive_count else part.budgets
        for j, (row, size) in enumerate(zip(group, sizes, strict=True)):
            # adaptive rows are unused (-1) anywhere; of the others only the first entries count
            order = _last(index[j]).sort() if pruner.adaptive_count else index[j, :size].sort()
            columns[row] = order.values[:size]
            if merged is not None:
                features[row] = merged[j][order.indices[:size]]
            if isinstance(found, Merged) and found.size is not None:
                weights[row] = found.size[j][order.indices[:size]]
    chosen = [c for c in columns if c is not None]
    if looked_at(pruner, chosen[0]):
        _check_columns(pruner, chosen, tokens)
    return chosen, features, weights


def _check_columns(pruner: Pruner, columns: list[Tensor], tokens: VisualTokens) -> None:
    """Refuse a column that is none of its span's, or one that comes twice; `columns` are sorted. One small read."""
    rows = torch.nn.utils.rnn.pad_sequence(columns, batch_first=True)
    limits = torch.tensor([list(map(len, columns)), list(tokens.counts)], device=rows.device)[..., None]
    there = torch.arange(rows.shape[1], device=rows.device) < limits[0]
    twice = there[:, 1:] & (rows[:, 1:] == rows[:, :-1])
    outside = there & ((rows < 0) | (rows >= limits[1]))
    if not bool(twice.any() | outside.any()):
        return
    for row, n, doubled, wrong in zip(rows, tokens.counts, twice, outside, strict=True):
        again, beyond = row[1:][doubled].tolist(), row[wrong].tolist()
        if again or beyond:
            what = f"column {beyond[0]}" if beyond else f"column {again[0]} twice"
            raise ValueError(f"{pruner.spoken_name}.select must return different columns from 0 to {n - 1}, got {what}")


def _check_merged(pruner: Pruner, found: Tensor | Merged | Lent, tokens: VisualTokens) -> None:
    """Refuse vectors or sizes that are not one for each column."""
    if not isinstance(found, Merged) or not isinstance(found.index, Tensor):
        return
    expected = (*found.index.shape, tokens.features.shape[-1])
    for name, value, shape in (("features", found.features, expected), ("size", found.size, expected[:2])):
        if value is not None and tuple(value.shape) != tuple(shape):
            raise ValueError(
                f"{pruner.spoken_name}.select: Merged.{name} must be {list(shape)}, got {list(value.shape)}"
            )


def _last(index: Tensor) -> Tensor:
    """`index` with unused entries (-1) greater than all others."""
    return index.masked_fill(index < 0, torch.iinfo(index.dtype).max)


def _adaptive_sizes(pruner: Pruner, index: Tensor, tokens: VisualTokens) -> list[int]:
    """How many entries of each row are used: an adaptive count is data, and this is its one sync."""
    sizes = (index >= 0).sum(1).tolist()
    least = int(tokens.stage != "decoder")
    for size, n in zip(sizes, tokens.counts, strict=True):
        if not least <= size <= n:
            raise ValueError(f"{pruner.spoken_name}.select keeps {size} of {n} tokens; it must keep {least} to {n}")
    return sizes


def _groups(pruner: Pruner, tokens: VisualTokens) -> list[list[int]]:
    rows = range(len(tokens.counts))
    if pruner.ragged:
        return [list(rows)]
    groups: dict[tuple[int, int], list[int]] = {}
    for i in rows:
        groups.setdefault((tokens.counts[i], tokens.budgets[i]), []).append(i)
    return list(groups.values())
