"""One pruning step of a run: candidates, budgets, the method's choice, and what becomes of newline tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.models.layout.model_parts import Parts
from vtc.models.layout.newlines import fill_with_newlines
from vtc.models.selection.column_indices import gather_columns
from vtc.models.selection.joined_crops import choose, pass_on
from vtc.pruners.base import Pruner, Stop, resolve_keep
from vtc.pruners.layout import LazyLayouts
from vtc.pruners.visual_tokens import VisualTokens

from .decoder_signals import HostSignals
from .forward_state import Run


def prune_step(run: Run, pruner: Pruner, stop: Stop, hidden: Tensor, parts: Parts) -> Tensor:
    """Let `pruner` choose at `stop`, and drop the rest; ``stop.keep=0`` drops everything without asking.

    Parameters
    ----------
    run : Run
        The forward's state; updated.
    hidden : Tensor
        `[B, L, D]` embeddings or hidden states of the present columns.
    parts : Parts
        The model's modules, for methods that ask for them.

    Returns
    -------
    Tensor
        `[B, L', D]`.
    """
    assert stop.keep is not None
    if pruner.calibrates and run.sizes is None:
        run.sizes = torch.ones(run.batch.columns.shape, device=run.ids.device)
    if stop.keep == 0:
        return run.drop(hidden, run.ids[:, :0], [0] * len(run.present), None)
    asked = [resolve_keep(stop.keep, full) for full in run.batch.lengths]
    budgets = [min(n, k) for n, k in zip(run.present, asked, strict=True)]
    content, counts = _content(run)
    chosen: list[Tensor] = []
    features: list[Tensor | None] = []
    joins = pruner.joins_crops and any(k < n for k, n in zip(budgets, counts, strict=True))
    pictures = run.pictures() if joins else []
    for picture in pictures:
        pass_on(picture.spans, asked, run.present, budgets)
    short = {i for i, (k, n) in enumerate(zip(budgets, counts, strict=True)) if k < n}
    active = sorted(short.union(*(p.spans for p in pictures if short.intersection(p.spans))))
    found: dict[int, tuple[Tensor, Tensor | None, Tensor | None]] = {}
    if active:
        tokens = _tokens(run, pruner, stop, hidden, parts, content, counts, budgets, active)
        found = choose(pruner, tokens, pictures)
    for i, (k, n) in enumerate(zip(budgets, counts, strict=True)):
        if i in found:
            kept, vectors, size = found[i]
            if pruner.calibrates and size is not None and run.sizes is not None:
                run.sizes[i, kept] = size.to(run.sizes)
        elif k == run.present[i]:
            kept, vectors = run.ids[i, :k], None
        else:
            kept, vectors = fill_with_newlines(content[i, :n], run.layouts()[i], k), None
        chosen.append(kept)
        features.append(vectors)
    present = [len(c) for c in chosen]
    ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=-1)
    merged = _merged_vectors(run, hidden, ids, features)
    return run.drop(hidden, ids, present, merged)


def keep_given(run: Run, kept: list[Tensor], hidden: Tensor) -> Tensor:
    """Drop all but the ids `kept` of each span (chosen earlier, inside the encoder)."""
    ids = torch.nn.utils.rnn.pad_sequence([k.to(run.ids.device) for k in kept], batch_first=True, padding_value=-1)
    return run.drop(hidden, ids, [len(k) for k in kept], None)


def _newlines(run: Run) -> Tensor | None:
    """`[S, N]` bool over original ids, or None where no span has any."""
    if run.newlines is False:  # not looked at yet
        run.newlines = None
        if any(f.record.may_have_newlines for f in run.batch.fed.values()):
            layouts = run.layouts()
            if any(layout.has_newlines for layout in layouts):
                flags = torch.nn.utils.rnn.pad_sequence([layout.newline for layout in layouts], batch_first=True)
                run.newlines = flags.to(run.ids.device)
    assert run.newlines is not False
    return run.newlines


def _content(run: Run) -> tuple[Tensor, list[int]]:
    """Present content ids `[S, n]` (-1 is padding) and how many each span has."""
    flags = _newlines(run)
    if flags is None:
        return run.ids, run.present
    layouts = run.layouts()
    # newlines are present only as long as all of the content is
    counts = [min(n, layout.content) for n, layout in zip(run.present, layouts, strict=True)]
    last = (run.ids < 0) | flags.gather(1, run.ids.clamp(min=0))
    order = last.to(torch.int8).sort(dim=1, stable=True).indices[:, : max(counts)]
    ids = run.ids.gather(1, order)
    beyond = torch.arange(ids.shape[1], device=ids.device) >= torch.tensor(counts, device=ids.device)[:, None]
    return ids.masked_fill(beyond, -1), counts


def _tokens(
    run: Run,
    pruner: Pruner,
    stop: Stop,
    hidden: Tensor,
    parts: Parts,
    content: Tensor,
    counts: list[int],
    budgets: list[int],
    active: list[int],
) -> VisualTokens:
    pick = torch.tensor(active, device=content.device)
    width = max(counts[i] for i in active)
    ids = content[pick, :width]
    samples = run.batch.samples[pick]
    columns = run.token_columns(ids, pick)
    features = gather_columns(hidden[samples.to(hidden.device)], columns, -2)
    return VisualTokens(
        features=features.masked_fill((ids < 0).to(features.device)[..., None], 0),
        ids=ids,
        counts=[counts[i] for i in active],
        budgets=[budgets[i] for i in active],
        layouts=LazyLayouts(run.layouts, active),
        sample=samples,
        order=[run.batch.spans[i].order for i in active],
        span=active,
        stage=stop.stage,
        layer=stop.layer,
        source=HostSignals(run, parts, pruner.signals_at(stop), stop.layer),
        state=run.notes.setdefault(id(pruner), {}),
    )


def _merged_vectors(run: Run, hidden: Tensor, ids: Tensor, features: list[Tensor | None]) -> Tensor | None:
    """`[S, n, D]` vectors to write: a merging method's where there are any, what is there already elsewhere."""
    if all(f is None for f in features):
        return None
    spans = torch.arange(ids.shape[0], device=ids.device)
    columns = run.token_columns(ids, spans)
    now = gather_columns(hidden[run.batch.samples.to(hidden.device)], columns, -2)
    rows = [
        now[i] if f is None else torch.nn.functional.pad(f.to(now), (0, 0, 0, ids.shape[1] - len(f)))
        for i, f in enumerate(features)
    ]
    return torch.stack(rows)
