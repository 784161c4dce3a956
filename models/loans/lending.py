"""One loan: which columns a layer is given, and what the others are behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.models.language.decoder_signals import HostSignals, text_columns
from vtc.models.language.forward_state import Run
from vtc.models.layout.model_parts import Parts
from vtc.models.selection.column_indices import gather_columns, mark
from vtc.pruners.base import Lent, Loan, LoanAgain, Pruner
from vtc.pruners.check_returned_values import looked_at
from vtc.pruners.layout import Layout
from vtc.pruners.signals import Signal
from vtc.pruners.visual_tokens import VisualTokens

# of a run, as it is again behind the layer
BEFORE = ("columns", "slots", "rope_columns", "rope_moved", "unseen", "padded", "pruned", "memo", "stage_count")


@dataclass
class Away:
    """What comes back behind a layer.

    Attributes
    ----------
    hidden : Tensor
        `[B, L, D]` what would have entered the layer.
    gate : Tensor
        `[B, L]`, 1 where no visual token is.
    order : Tensor
        `[B, L']`: the columns that entered it; -1 is padding.
    scale : Tensor
        `[B, L', 1]` their gates.
    before : dict
        The run's state.
    """

    hidden: Tensor
    gate: Tensor
    order: Tensor
    scale: Tensor
    before: dict[str, Any]


class LoanSignals(HostSignals):
    """What a method may read at a loan, where the tokens of the batch's samples are at the columns `where` `[B, N]`."""

    def __init__(self, run: Run, parts: Parts, declared: tuple[Signal, ...], layer: int | None, where: Tensor):
        super().__init__(run, parts, declared, layer)
        self.where = where

    def _columns(self, tokens: VisualTokens, place: Tensor) -> Tensor:
        where = self.where[tokens.sample][:, : tokens.ids.shape[1]]
        return where.masked_fill(tokens.ids < 0, -1)

    def text_valid(self, tokens: VisualTokens | None) -> Tensor:
        """See ``VisualTokens.text_valid``; behind a sample's last visual token."""
        if tokens is None:
            return super().text_valid(None)
        columns, real = text_columns(self.run)
        place = self.where.masked_fill(self.where >= self.run.columns.shape[1], 0)
        last = self.run.columns.gather(1, place).amax(1, keepdim=True)
        return ((columns > last) & real)[tokens.sample]

    def count_flops(self, tokens: VisualTokens, row: int, flops: int) -> None:
        """See ``VisualTokens.count_flops``."""
        sample = int(tokens.sample[row])
        self.run.own_flops[sample] = self.run.own_flops.get(sample, 0) + flops


def lend(run: Run, pruner: Pruner, stop: Loan, hidden: Tensor, parts: Parts) -> tuple[Tensor, Tensor, int]:
    """Let `pruner` choose what enters the layer of `stop`, and leave only that.

    Parameters
    ----------
    run : Run
        The forward's state; ``away`` is set, and the rest is of the shorter sequence until ``give_back``.
    hidden : Tensor
        `[B, L, D]` of the present columns.
    parts : Parts
        The model's modules, for methods that ask for them.

    Returns
    -------
    hidden : Tensor
        `[B, L', D]`, right-aligned.
    ids : Tensor
        `[S, N]` ids of each span that enter, -1 for the others.
    count : int
        How many these are.
    """
    rows, length = run.columns.shape
    batch, device = run.batch, run.columns.device
    columns = run.token_columns(run.ids, torch.arange(len(run.present), device=device))
    visual = torch.zeros(rows, length + 1, dtype=torch.bool, device=device)
    mark(visual, batch.samples, columns, length, True)
    counts = [0] * rows
    for span, n in zip(batch.spans, run.present, strict=True):
        counts[span.sample] += n
    budgets = [stop.count(n) for n in counts]
    # columns of each sample's visual tokens, padding points at the dummy column
    where = torch.where(visual, torch.arange(length + 1, device=device), length).sort(1).values[:, : max(counts)]
    if not isinstance(stop, LoanAgain):
        source = LoanSignals(run, parts, pruner.signals_at(stop), stop.layer, where)
        run.lent_to = _choose(pruner, stop, hidden, source, counts, budgets)
    assert run.lent_to is not None
    chosen, gates = run.lent_to
    enters = torch.zeros_like(visual).scatter(1, where, chosen.to(device))
    enters[:, length] = False
    ones = torch.ones(rows, length + 1, dtype=gates.dtype, device=gates.device)
    gate = ones.scatter(1, where.to(gates.device), gates)[:, :length]
    lent = enters[batch.samples[:, None], columns.clamp(min=0)] & (run.ids >= 0)
    ids = torch.where(lent, run.ids, -1)

    before = {name: getattr(run, name) for name in BEFORE}
    keep = enters[:, :length] | ~visual[:, :length]
    asked = run.unseen is not None
    if not batch.single or asked:
        keep &= run.slots >= 0
    width, padded = batch.width_after(run.full, _left(run, counts, budgets), run.padded, asked)
    order = run.narrow(keep, min(width, length))
    run.padded, run.stage_count = padded, -1 - (stop.layer or 0)  # no other layer of this forward holds the same
    scale = gather_columns(gate[..., None], order, -2).masked_fill((order < 0).to(gate.device)[..., None], 1)
    run.away = Away(hidden, gate, order, scale, before)
    run.lent[stop.layer or 0] = None if stop.layer else hidden
    return gather_columns(hidden, order, -2), ids, sum(budgets)


def _choose(
    pruner: Pruner, stop: Loan, hidden: Tensor, source: LoanSignals, counts: list[int], budgets: list[int]
) -> tuple[Tensor, Tensor]:
    """`[B, N]` bool: which of the tokens at the columns ``source.where`` of `hidden` enter, and their gates."""
    where = source.where
    rows, width = where.shape
    asked = [b for b in range(rows) if counts[b]]
    pick = torch.tensor(asked, device=where.device)
    ids = torch.arange(width, device=where.device).expand(len(asked), -1)
    real = ids < torch.tensor([counts[b] for b in asked], device=where.device)[:, None]
    features = gather_columns(hidden[pick.to(hidden.device)], torch.where(real, where[pick], -1), -2)
    tokens = VisualTokens(
        features=features.masked_fill(~real.to(hidden.device)[..., None], 0),
        ids=ids.masked_fill(~real, -1),
        counts=[counts[b] for b in asked],
        budgets=[budgets[b] for b in asked],
        layouts=[Layout.line(counts[b]) for b in asked],
        sample=pick,
        order=[0] * len(asked),
        stage=stop.stage,
        layer=stop.layer,
        source=source,
    )
    k = max(tokens.budgets)
    with torch.autocast(hidden.device.type, enabled=False):  # methods say themselves what they compute in
        found = pruner.select(tokens, k)
    index, gate = _checked(pruner, found, tokens, k)
    used = torch.arange(k, device=index.device) < torch.tensor(tokens.budgets, device=index.device)[:, None]
    chosen = torch.zeros(len(asked), width + 1, dtype=torch.bool, device=index.device)
    chosen = chosen.scatter(1, torch.where(used, index, width), True)[:, :width] & real.to(index.device)
    if looked_at(pruner, chosen) and chosen.sum(1).tolist() != list(tokens.budgets):
        raise ValueError(f"{pruner.spoken_name}.select must return {tokens.budgets} different tokens of each row")
    gate = torch.where(real.to(gate.device), gate, 1)
    everything = torch.zeros(rows, width, dtype=torch.bool, device=index.device).index_copy(0, pick, chosen)
    return everything, torch.ones(rows, width, dtype=gate.dtype, device=gate.device).index_copy(
        0, pick.to(gate.device), gate
    )


def _checked(pruner: Pruner, found: Any, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor]:
    name, rows = f"{pruner.spoken_name}.select", len(tokens.counts)
    if not isinstance(found, Lent) or found.index.dtype != torch.int64:
        raise TypeError(f"{name} must return Lent with an int64 index at a loan, got {type(found).__name__}")
    if found.index.dim() != 2 or found.index.shape[0] != rows or found.index.shape[1] < k:
        raise ValueError(f"{name} must return an index [{rows}, {k}], got {list(found.index.shape)}")
    if found.gate.shape != tokens.ids.shape:
        raise ValueError(
            f"{name} must return a gate for each token, {list(tokens.ids.shape)}, got {list(found.gate.shape)}"
        )
    return found.index[:, :k], found.gate


def _left(run: Run, counts: list[int], budgets: list[int]) -> list[int]:
    """What is left of each span, as if each sample's first ones gave all that goes: their sums are true."""
    go = [n - k for n, k in zip(counts, budgets, strict=True)]
    left = []
    for span, n in zip(run.batch.spans, run.present, strict=True):
        gone = min(n, go[span.sample])
        go[span.sample] -= gone
        left.append(n - gone)
    return left


def give_back(run: Run, output: Tensor) -> Tensor:
    """What leaves the layer, `[B, L, D]`, of what it gave for the columns that entered, `[B, L', D]`."""
    away: Away = run.away
    rows, length, width = away.hidden.shape
    beyond = (away.order < 0) | (run.slots < 0)  # padding stays what it was
    place = torch.where(beyond, length, away.order).to(output.device)
    around = (away.hidden * away.gate[..., None].to(away.hidden.device)).to(output)
    whole = torch.cat([around, around.new_zeros(rows, 1, width)], 1)
    whole = whole.scatter(1, place[..., None].expand(-1, -1, width), output)[:, :length]
    for name, value in away.before.items():
        setattr(run, name, value)
    run.away = None
    return whole
