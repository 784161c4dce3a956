"""Serves a method's reads at the input and decoder stages from what one forward captured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.layout.embedding_table import embeddings, vocabulary_size
from vtc.models.layout.model_parts import Parts
from vtc.models.layout.run_projector import project, whole_projector
from vtc.models.selection.column_indices import gather_columns
from vtc.models.stock.attention_taps import attention_rows, largest_of_heads
from vtc.models.stock.spread_over_processes import every_head
from vtc.pruners.base import Pruner, Stop
from vtc.pruners.signals import (
    AttentionAhead,
    DecoderAttention,
    DecoderHidden,
    DecoderKeys,
    DecoderSignal,
    DecoderTransition,
    DecoderValues,
    EncoderAttention,
    EncoderSpecial,
    Projected,
    QuestionState,
    Signal,
    TextEmbeddings,
)
from vtc.pruners.visual_tokens import SignalSource, VisualTokens

from .forward_state import Run
from .question_words import question_states, questions

EMBEDDINGS = "embeddings"
AT_ONCE = 512  # rows of a whole map of attention in memory at a time
ROWS = (DecoderAttention, AttentionAhead)  # attention rows: [B, H, R, L]


def resolve(signal: Signal, layer: int | None) -> Signal:
    """`signal` with ``layer=None`` replaced by the decoder layer it means at pruning layer `layer`.

    That is the layer right before, and `layer` itself for ``AttentionAhead``.
    """
    if isinstance(signal, DecoderSignal) and signal.layer is None and layer is not None:
        return replace(signal, layer=layer if isinstance(signal, AttentionAhead) else layer - 1)
    return signal


def key_of(signal: Signal) -> Any:
    """Under what ``Run.captured`` holds a signal."""
    return EMBEDDINGS if isinstance(signal, (Projected, TextEmbeddings)) else signal


def last_reads(stops: Sequence[tuple[Pruner, Stop]]) -> dict[int, list[Any]]:
    """By decoder layer: the keys of ``Run.captured`` that no stop behind it reads."""
    last: dict[Any, int] = {}
    for pruner, stop in stops:
        if stop.stage == "decoder":
            last.update((key_of(resolve(s, stop.layer)), stop.layer or 0) for s in pruner.signals_at(stop))
    return {layer: [key for key, at in last.items() if at == layer] for layer in set(last.values())}


def text_columns(run: Run) -> tuple[Tensor, Tensor]:
    """Original columns of each sample's text, `[B, T]`, and `[B, T]` bool: False where it is padding."""
    if "text" not in run.captured:
        batch, full = run.batch, run.full
        rows = run.columns.shape[0]
        device = run.columns.device
        is_text = ~batch.visual(rows, full)
        if run.prompt is not None:
            is_text[:, max(0, run.prompt - run.past) :] = False
        valid = run.valid
        if batch.single:
            width = full - sum(batch.lengths)
        else:
            is_text &= valid
            visual = [0] * rows
            for span, n in zip(batch.spans, batch.lengths, strict=True):
                visual[span.sample] += n
            width = max(n - v for n, v in zip(batch.row_lengths, visual, strict=True))
        order = torch.where(is_text, torch.arange(full, device=device), -1).sort(1).values[:, full - width :]
        real = (order >= 0) & valid.gather(1, order.clamp(min=0))
        run.captured["text"] = (order.clamp(min=0), real)
    return run.captured["text"]


class HostSignals(SignalSource):
    """Lazy reads of one run; see ``VisualTokens``."""

    def __init__(self, run: Run, parts: Parts, declared: tuple[Signal, ...], layer: int | None):
        self.run, self.parts, self.layer = run, parts, layer
        self.declared = tuple(dict.fromkeys(resolve(s, layer) for s in declared))

    def _captured(self, signal: Signal) -> tuple[Tensor, Tensor]:
        signal = self._check(signal)
        if isinstance(signal, AttentionAhead):
            return self.run.look_ahead(signal.queries, signal.content)
        values, place = self.run.captured[key_of(signal)]
        if isinstance(signal, (DecoderKeys, DecoderValues)):
            values = values.transpose(1, 2).flatten(2)
        return values, place

    def _heads(self, signal: Signal, found: Tensor) -> Tensor:
        """Values of a decoder layer by head again."""
        if not isinstance(signal, DecoderValues):
            return found
        return found.unflatten(-1, (self.run.captured[self._check(signal)][0].shape[1], -1))

    def _check(self, signal: Signal) -> Signal:
        signal = resolve(signal, self.layer)
        if signal not in self.declared:
            have = ", ".join(map(str, self.declared)) or "none"
            raise ValueError(
                f"{signal} was not declared in the pruner's `signals` (declared: {have}), so it was not computed"
            )
        return signal

    def read(self, signal: Signal, tokens: VisualTokens) -> Tensor:
        """See ``VisualTokens.read``."""
        if signal.part == "encoder":
            return self._read_encoder(self._check(signal), tokens)
        if isinstance(signal, QuestionState):
            raise ValueError(f"{signal} has no value per visual token; tokens.text gives one of each sample")
        values, place = self._captured(signal)
        columns = self._columns(tokens, place).to(values.device)
        pad = (tokens.ids < 0).to(values.device)
        values = values[tokens.sample.to(values.device)]
        if isinstance(signal, ROWS):
            return (
                gather_columns(values.flatten(1, 2).transpose(1, 2), columns, -2)
                .transpose(1, 2)
                .unflatten(1, values.shape[1:3])
                .masked_fill(pad[:, None, None], 0)
            )
        return self._heads(signal, gather_columns(values, columns, -2).masked_fill(pad[..., None], 0))

    def _columns(self, tokens: VisualTokens, place: Tensor) -> Tensor:
        """`[B, N]`: where `tokens` stand in what was captured when ``current()`` was `place`; -1 is padding."""
        span = torch.tensor(list(tokens.span), device=tokens.ids.device)
        return self.run.token_columns(tokens.ids, span, place)

    def _read_encoder(self, signal: Signal, tokens: VisualTokens) -> Tensor:
        values = self.run.batch.per_span(lambda record: record.signals[signal])
        rows = [values[i] for i in tokens.span]
        if isinstance(signal, EncoderSpecial):
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        attention = isinstance(signal, EncoderAttention)
        stacked = torch.nn.utils.rnn.pad_sequence(
            [r.transpose(0, 1) if attention else r for r in rows], batch_first=True
        )
        index = tokens.ids.clamp(min=0).to(stacked.device)
        index = index.view(*index.shape, *[1] * (stacked.dim() - 2)).expand(-1, -1, *stacked.shape[2:])
        found = stacked.gather(1, index)
        found = found * (tokens.ids >= 0).to(found.device).view(*tokens.ids.shape, *[1] * (found.dim() - 2))
        return found.transpose(1, 2) if attention else found

    def text(self, signal: Signal) -> Tensor:
        """See ``VisualTokens.text``."""
        if isinstance(signal, ROWS):
            raise ValueError("attention rows have no value per text token; read them at the visual tokens")
        if isinstance(signal, QuestionState):
            self._check(signal)
            return question_states(self.run, self.parts, signal)
        values, place = self._captured(signal)
        columns = place.gather(1, text_columns(self.run)[0]).to(values.device)
        return self._heads(signal, gather_columns(values, columns, -2))

    def text_valid(self, tokens: VisualTokens | None) -> Tensor:
        """See ``VisualTokens.text_valid``."""
        columns, real = text_columns(self.run)
        if tokens is None:
            return real
        batch = self.run.batch
        span = list(tokens.span)
        ends = torch.tensor([batch.lengths[i] - 1 for i in span], device=columns.device)
        last = batch.columns[torch.tensor(span, device=columns.device)].gather(1, ends[:, None])
        return (columns[tokens.sample] > last) & real[tokens.sample]

    def count_flops(self, tokens: VisualTokens, row: int, flops: int) -> None:
        """See ``VisualTokens.count_flops``."""
        sample = self.run.batch.spans[tokens.span[row]].sample
        self.run.own_flops[sample] = self.run.own_flops.get(sample, 0) + flops

    def final_norm(self, x: Tensor) -> Tensor:
        """See ``VisualTokens.final_norm``."""
        return self.parts.final_norm(x)

    def project(self, x: Tensor) -> Tensor:
        """See ``VisualTokens.project``."""
        return project(self.parts, x)

    @property
    def projector(self) -> nn.Module:
        """See ``VisualTokens.projector``."""
        return whole_projector(self.parts)

    @property
    def embeddings(self) -> Tensor:
        """See ``VisualTokens.embeddings``."""
        return embeddings(self.parts)

    @property
    def vocabulary_size(self) -> int:
        """See ``VisualTokens.vocabulary_size``."""
        return vocabulary_size(self.parts)

    def questions(self) -> list[str]:
        """See ``VisualTokens.questions``."""
        return questions(self.run)


def last_columns(run: Run) -> Tensor:
    """`[B, 1]`: present column of each sample's last prompt token."""
    slots = run.slots if run.prompt is None else run.slots.masked_fill(run.slots >= run.prompt, -1)
    return slots.argmax(1, keepdim=True)


def query_columns(run: Run, queries: str, length: int) -> Tensor:
    """`[B, R]`: present columns, of `length`, that ``DecoderAttention.queries`` means."""
    if queries == "last":
        return last_columns(run)
    if queries == "text":
        return run.current().gather(1, text_columns(run)[0]).clamp(min=0)  # padding may be gone
    return torch.arange(length, device=run.columns.device).expand(run.columns.shape[0], -1)


def visual_columns(run: Run) -> Tensor:
    """`[B, L]` bool: the present columns of visual tokens; one that is there only to be asked of is none."""
    given = run.batch.visual(run.columns.shape[0], run.full)
    found = given.gather(1, run.columns.clamp(min=0)) & (run.columns >= 0)
    return found if run.unseen is None else found & ~run.unseen


def capture_attention(
    run: Run,
    signals: Sequence[DecoderSignal],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    scaling: float,
) -> None:
    """Store what `signals` ask of one decoder layer's attention `module`.

    It may have been given its last columns only, where the first ones' keys are there already: then rows of those can't
    be asked.
    """
    length = run.columns.shape[1]
    given, place = length - query.shape[2], run.current()
    for signal in signals:
        if isinstance(signal, DecoderAttention):
            rows = query_columns(run, signal.queries, length) - given
            look = partial(_look, signal, module, query, key, mask, scaling, length)
            run.captured[signal] = (_over_visual(run, rows, look) if signal.queries == "visual" else look(rows)), place
        elif isinstance(signal, (DecoderKeys, DecoderValues)):
            states = key if isinstance(signal, DecoderKeys) else value
            run.captured[signal] = every_head(module, states[:, :, states.shape[2] - length :]), place


def _look(
    signal: DecoderAttention,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Any,
    scaling: float,
    length: int,
    rows: Tensor,
) -> Tensor:
    """What the queries `rows` `[B, R]` give the last `length` keys, `[B, H, R, L]`, or `[B, 1, R, L]` of all heads."""
    if signal.heads != "max":
        weights = attention_rows(query, key, mask, scaling, rows)
        return every_head(module, weights[..., weights.shape[-1] - length :])
    weights = largest_of_heads(query, key, mask, scaling, rows)
    # each process has given the largest of its own heads
    return every_head(module, weights[..., weights.shape[-1] - length :]).amax(1, keepdim=True)


def _over_visual(run: Run, rows: Tensor, look: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum of what ``look`` gives of those of `rows` `[B, L]` that are visual tokens, some rows at a time."""
    asking = visual_columns(run)
    parts = zip(rows.split(AT_ONCE, 1), asking.split(AT_ONCE, 1), strict=True)
    total: Tensor | None = None
    for some, ask in parts:
        seen = look(some)
        one = seen.masked_fill(~ask.to(seen.device)[:, None, :, None], 0).sum(2, keepdim=True)
        total = one if total is None else total + one
    assert total is not None
    return total


def capture_hidden(run: Run, signals: Sequence[DecoderHidden], hidden: Tensor) -> None:
    """Store `hidden` for the signals that ask for it."""
    for signal in signals:
        run.captured[signal] = (hidden, run.current())


def capture_transition(run: Run, signals: Sequence[DecoderTransition], before: Tensor, after: Tensor) -> None:
    """Store what a sublayer did to the tokens, `before` and `after` it `[B, L, D]`, for `signals` of it."""
    seen = changes(before, after)
    for signal in signals:
        run.captured[signal] = finished(run, signal, seen), run.current()


def changes(before: Tensor, after: Tensor) -> Tensor:
    """``transition`` of tokens `before` and `after` a sublayer `[B, L, D]`, `[B, L, 2]` float32."""
    with torch.no_grad():
        return torch.stack(transition(before.to(after.device), after), -1)


def finished(run: Run, signal: DecoderTransition, seen: Tensor) -> Tensor:
    """What `signal` promises, from the ``changes`` that were `seen` at the present columns, `[B, L, 2]` float32."""
    ratio, cosine = seen.unbind(-1)
    turn = 1 - (cosine.abs() if signal.absolute else cosine)
    share = (_over_sequence if signal.over == "sequence" else _over_spans)(run, turn)
    return torch.stack([ratio, share], -1)


def transition(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """``||y|| / ||x||`` and ``cos(x, y)`` of the vectors x `before` and y `after` `[..., D]`, `[...]` float32."""
    x, y = before.float(), after.float()
    long, longer = x.norm(dim=-1), y.norm(dim=-1)
    least = torch.finfo(torch.float32).tiny
    return longer / long.clamp(min=least), (x * y).sum(-1) / (long * longer).clamp(min=least)


def _over_sequence(run: Run, x: Tensor) -> Tensor:
    """Softmax of `x` `[B, L]` over each sample's columns, padding and candidates of assisted decoding left out."""
    real = run.slots >= 0
    if run.prompt is not None:
        real &= run.slots < run.prompt
    return x.masked_fill(~real.to(x.device), float("-inf")).softmax(-1)


def _over_spans(run: Run, x: Tensor) -> Tensor:
    """Softmax of `x` `[B, L]` over each span's own columns; zero elsewhere."""
    rows, length = x.shape
    columns = run.token_columns(run.ids, torch.arange(len(run.present), device=run.ids.device)).to(x.device)
    samples = run.batch.samples.to(x.device)[:, None]
    share = x[samples, columns.clamp(min=0)].masked_fill(columns < 0, float("-inf")).softmax(-1)
    # padding of a span's row goes to a dummy column
    flat = samples * (length + 1) + torch.where(columns < 0, length, columns)
    out = x.new_zeros(rows, length + 1)
    out.view(-1).scatter_(0, flat.reshape(-1), share.reshape(-1))
    return out[:, :length]
