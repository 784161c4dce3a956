"""What every method promises of its choice, checked on made-up spans: for the property tests of the methods."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from golden_support import Served
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vtc.pruners.base import Lent, Merged, Pruner
from vtc.pruners.layout import Layout
from vtc.pruners.signals import QuestionState, Signal
from vtc.pruners.visual_tokens import VisualTokens


@dataclass
class Spans:
    """Spans of different lengths, one per sample.

    Attributes
    ----------
    features : sequence of Tensor
        `[n_i, D]` each.
    budgets : sequence of int
        What each keeps.
    reads : dict
        Per signal and span what is read there, unbatched: attention `[H, n_i]` or `[H, R, n_i]`, others `[n_i, ...]`.
    texts : dict
        Per signal and sample what is read at the text, `[T_i, ...]` each; all of it stands behind the span.
    layouts : sequence of Layout, optional
        Of each span; a line by default.
    stage, layer, last, projector, questions, table
        As in ``VisualTokens``; the table is ``embeddings``.
    """

    features: Sequence[Tensor]
    budgets: Sequence[int]
    reads: dict[Signal, Sequence[Tensor]] = field(default_factory=dict)
    texts: dict[Signal, Sequence[Tensor]] = field(default_factory=dict)
    layouts: Sequence[Layout] | None = None
    stage: str = "input"
    layer: int | None = None
    last: int | None = None
    projector: nn.Module | None = None
    questions: Sequence[str] | None = None
    table: Tensor | None = None

    def tokens(self, rows: Sequence[int] | None = None) -> VisualTokens:
        """The spans `rows` (all by default) as the host would give them, padded to the longest."""
        rows = range(len(self.features)) if rows is None else rows
        counts = [len(self.features[i]) for i in rows]
        width = max(counts)
        ids = torch.arange(width).expand(len(rows), -1)
        read_of = {}
        for signal, values in self.reads.items():
            if signal.is_attention:
                read_of[signal] = torch.stack([pad(values[i], (0, width - values[i].shape[-1])) for i in rows])
            else:
                read_of[signal] = pad_sequence([values[i] for i in rows], batch_first=True)
        text_of = {s: pad_sequence([v[i] for i in rows], batch_first=True) for s, v in self.texts.items()}
        behind = None
        for signal, values in self.texts.items():
            if isinstance(signal, QuestionState):  # one of a sample
                continue
            lengths = [len(values[i]) for i in rows]
            behind = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        asked = [self.questions[i] for i in rows] if self.questions else []
        return VisualTokens(
            features=pad_sequence([self.features[i] for i in rows], batch_first=True),
            ids=ids.masked_fill(ids >= torch.tensor(counts)[:, None], -1),
            counts=counts,
            budgets=[self.budgets[i] for i in rows],
            layouts=[self.layouts[i] if self.layouts else Layout.line(len(self.features[i])) for i in rows],
            sample=torch.arange(len(rows)),
            order=[0] * len(rows),
            span=list(range(len(rows))),
            stage=self.stage,
            layer=self.layer,
            last=self.last,
            source=Served(read_of, text_of, behind, self.projector, asked, self.table),
        )


def chosen(pruner: Pruner, tokens: VisualTokens) -> list[list[int]]:
    """The columns that `pruner` keeps of each row, in its order; the contract's form is checked."""
    k = max(tokens.budgets)
    found = pruner.select(tokens, k)
    index = found.index if isinstance(found, (Merged, Lent)) else found
    assert index.dtype == torch.int64
    assert index.shape[0] == len(tokens.counts)
    assert index.shape[1] >= (1 if pruner.adaptive_count else k)
    if isinstance(found, Merged):
        assert found.features.shape == (*index.shape, tokens.features.shape[-1])
        assert found.features.dtype == tokens.features.dtype
    if pruner.adaptive_count:
        return [[c for c in row if c >= 0] for row in index.tolist()]
    return [row[:budget] for row, budget in zip(index.tolist(), tokens.budgets, strict=True)]


def check_selection(pruner: Pruner, spans: Spans, alone: bool = True) -> list[list[int]]:
    """Exact counts, unique, in range, the same twice; and each span alone gives what it gives beside others.

    Parameters
    ----------
    pruner : Pruner
        The method.
    spans : Spans
        Spans; where the method isn't ragged, of one length and budget.
    alone : bool
        Whether spans are compared with themselves alone; not where ties may be broken by rounding.

    Returns
    -------
    list of list of int
        Kept columns of each span in the method's order.
    """
    tokens = spans.tokens()
    found = chosen(pruner, tokens)
    for row, count, budget in zip(found, tokens.counts, tokens.budgets, strict=True):
        assert len(set(row)) == len(row), f"unique: {row}"
        assert all(0 <= c < count for c in row), f"in range({count}): {row}"
        assert len(row) == budget or pruner.adaptive_count, f"{len(row)} kept, {budget} asked"
        assert row or tokens.stage == "decoder", "no span is left empty before the decoder"
    assert chosen(pruner, spans.tokens()) == found, "deterministic"
    if alone:
        for i, row in enumerate(found):
            assert chosen(pruner, spans.tokens([i])) == [row], f"span {i} alone"
    return found


class _Watch(TorchDispatchMode):
    """Adds up the bytes of all storages alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs), False)  # what comes from outside is given, and so are views of it
        out = func(*args, **(kwargs or {}))
        self._note(out, True)
        self.peak = max(self.peak, sum(self.live.values()))
        return out

    def _note(self, values: Any, made: bool) -> None:
        for x in tree_leaves(values):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                key = storage._cdata
                if key not in self.live:
                    self.live[key] = storage.nbytes() if made else 0
                    weakref.finalize(storage, self.live.pop, key, None)


def peak_bytes(prepare: Callable[[], Any], run: Callable[[Any], Any], fake: bool = True) -> int:
    """Most bytes of tensors that `run` held at a time beyond what `prepare` gave it; if `fake`, nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext():
        given = prepare()
        with _Watch() as watch:
            run(given)
    return watch.peak


def allocated_bytes(run: Callable[[], Any]) -> int:
    """Most bytes that `run` held at a time on the CPU by the allocator's own record: inside operators, too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(held, default=0)
