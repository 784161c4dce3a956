"""The sweep: every cell answers the same questions, a few images at a time, and nothing is computed twice."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from .answer import Answer, answer_plain, answer_shared, shares_prefix
from .cells import Cell
from .cost import LMCost
from .encode import encode, reuses_encoder
from .loading import Loaded
from .prompt import Row, make_row
from .scoring import score
from .store import Key
from .tasks import Question, TaskSet

IMAGES_PER_CHUNK = 16


@dataclass
class Sweep:
    """What to run.

    ``cost`` is None for models whose FLOPs are not counted; ``share`` allows one prefill per image for the methods that
    don't read the question (the answers are the same, see ``answer_shared``).
    """

    loaded: Loaded
    tasks: TaskSet
    cells: Sequence[Cell]
    cost: LMCost | None = None
    batch_size: int = 16
    max_new_tokens: int = 16
    share: bool = True

    @property
    def model(self) -> nn.Module:
        """The model under test."""
        return self.loaded.model

    def total(self) -> int:
        """Number of (sample, cell) pairs."""
        return len(self.cells) * len(self.tasks.questions)


def pruned(model: nn.Module, cell: Cell) -> Any:
    """Context in which `model` runs under `cell`."""
    import vtc

    return nullcontext(model) if cell.spec == "unpruned" else vtc.compressed(model, cell.spec)


def result_row(sweep: Sweep, cell: Cell, row: Row, answer: Answer) -> dict[str, Any]:
    """One line of the results file."""
    q, m, text = row.question, answer.measured, len(row.ids) - row.visual
    line: dict[str, Any] = {
        "cell": cell.spec, "method": cell.method, "keep": cell.keep,
        "question_id": q.question_id, "task": q.task, "image_id": q.image_id, "question": q.question,
        "answer": q.answer, "prediction": answer.text, "score": score(answer.text, q.answer),
        "prompt_tokens": len(row.ids), "visual_total": m.total, "visual_kept": m.kept,
        "visual_mean_per_layer": round(m.mean, 3),
    }  # fmt: skip
    if sweep.cost is not None:
        lengths, full = [text + n for n in m.per_layer], [len(row.ids)] * len(m.per_layer)
        line |= {
            "lm_flops": sweep.cost.flops(lengths), "lm_flops_unpruned": sweep.cost.flops(full),
            "kv_bytes": sweep.cost.kv_bytes(lengths), "kv_bytes_unpruned": sweep.cost.kv_bytes(full),
        }  # fmt: skip
    return line


class _Chunk:
    """Rows and vision outputs of a few images, made when they are first needed."""

    def __init__(self, sweep: Sweep, groups: Sequence[Sequence[Question]]):
        self.sweep, self.groups = sweep, groups
        self._rows: dict[str, Row] = {}
        self._encoded: dict[tuple[str, str], Any] = {}

    def rows(self, questions: Sequence[Question]) -> list[Row]:
        loaded = self.sweep.loaded
        new = [q for q in questions if q.question_id not in self._rows]
        if new:
            image = self.sweep.tasks.image(new[0].image_id)
            for q in new:
                self._rows[q.question_id] = make_row(loaded.processor, loaded.model.config, image, q)
        return [self._rows[q.question_id] for q in questions]

    def encoded(self, cell: Cell, row: Row) -> Any:
        """The vision output for `row`; the unpruned model uses the one that the methods without tower signals share."""
        key = (cell.encoder, row.question.image_id)
        if key not in self._encoded:
            plain = [c for c in self.sweep.cells if c.spec != "unpruned" and c.encoder == cell.encoder]
            maker = plain[0] if plain else cell
            # made under a wrapped model, so that it carries the record of its grid
            with pruned(self.sweep.model, maker) as model:
                self._encoded[key] = encode(model, row)
        return self._encoded[key]


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _packs(groups: Sequence[list[Row]], size: int) -> Iterator[list[list[Row]]]:
    """Images with equally long prefixes, together up to `size` questions; an image with more is cut."""
    by_prefix: dict[int, list[list[Row]]] = defaultdict(list)
    for group in groups:
        by_prefix[group[0].prefix] += [list(part) for part in _batches(group, size)]
    for same in by_prefix.values():
        pack: list[list[Row]] = []
        for group in same:
            if pack and sum(map(len, pack)) + len(group) > size:
                yield pack
                pack = []
            pack.append(group)
        yield pack


def _answers(sweep: Sweep, cell: Cell, chunk: _Chunk, groups: list[list[Row]]) -> Iterator[list[tuple[Row, Answer]]]:
    """Answers to the groups' questions, batch by batch."""
    model, processor, limit = sweep.model, sweep.loaded.processor, sweep.max_new_tokens
    reuse = reuses_encoder(model)
    if reuse:  # before wrapping for this cell: the tower may have to run under another one
        encoded = {g[0].question.image_id: chunk.encoded(cell, g[0]) for g in groups}
    with pruned(model, cell) as wrapped:
        if reuse and sweep.share and not cell.reads_text and shares_prefix(model):
            for pack in _packs(groups, sweep.batch_size):
                vision = [encoded[g[0].question.image_id] for g in pack]
                found = answer_shared(wrapped, processor, pack, vision, limit)
                yield [pair for g, a in zip(pack, found, strict=True) for pair in zip(g, a, strict=True)]
            return
        rows = sorted(itertools.chain(*groups), key=lambda r: len(r.ids))
        for batch in _batches(rows, sweep.batch_size):
            outputs = [encoded[r.question.image_id] for r in batch] if reuse else None
            yield list(zip(batch, answer_plain(wrapped, processor, batch, outputs, limit), strict=True))


class Results(Protocol):
    """Where rows go, and which are there: ``ResultStore``, or a worker's line to it."""

    def __contains__(self, key: Key) -> bool:
        """Whether the row of (cell, question id) is there."""

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take rows."""


def run_sweep(sweep: Sweep, store: Results, advance: Callable[[int], None] = lambda n: None) -> None:
    """Compute what `store` lacks.

    Parameters
    ----------
    sweep : Sweep
        What to run.
    store : Results
        Receives a row per sample and cell, batch by batch, and knows which are done.
    advance : callable
        Called with the number of (sample, cell) pairs that were just finished or found done.
    """
    for groups in _batches(sweep.tasks.groups(), IMAGES_PER_CHUNK):
        chunk = _Chunk(sweep, groups)
        for cell in sweep.cells:
            left = [[q for q in g if (cell.spec, q.question_id) not in store] for g in groups]
            advance(sum(map(len, groups)) - sum(map(len, left)))
            todo = [chunk.rows(g) for g in left if g]
            for answered in _answers(sweep, cell, chunk, todo) if todo else ():
                store.append(result_row(sweep, cell, row, answer) for row, answer in answered)
                advance(len(answered))
