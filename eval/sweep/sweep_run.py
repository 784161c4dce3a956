"""The sweep: every cell answers the same questions, a few images at a time, and nothing is computed twice."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from vtc.eval.cost.prefill_cost import LMCost
from vtc.eval.tasks.metrics import metric
from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.vlm.branching import Branching
from vtc.eval.vlm.encode_once import reuses_encoder
from vtc.eval.vlm.feature_cache import Features, pruned
from vtc.eval.vlm.layers_before_choice import layers_before_choice
from vtc.eval.vlm.loading import Loaded
from vtc.eval.vlm.pictures_once import pictures_once
from vtc.eval.vlm.prompts import Row, make_row
from vtc.eval.vlm.pruning_settings import CACHE_BYTES, Cell
from vtc.eval.vlm.smaller_pictures import SmallRows

from .answer import Answer, answer_behind, answer_plain, answer_shared, prefix_states, shares_prefix
from .chunks_and_batches import batches, deal, packs, turns
from .locks import Claims
from .options import LONGEST, RunOptions, longest_answers
from .results_store import Key

ENCODING = "encoding"  # counted like a cell, one per image
Advance = Callable[[str, int, bool], None]


@dataclass
class Sweep:
    """What to run.

    ``cost`` is None for models whose FLOPs are not counted; ``share`` allows one prefill per image for the methods that
    don't read the question, and for others one run of the layers before their first choice (the answers are the same,
    see ``answer_shared`` and ``answer_behind``). ``longest`` are the longest answers of tasks with another one than
    ``max_new_tokens``, ``frames`` those of a video, else as its definition says. ``cache_bytes`` bounds the vision
    features that are held, ``part`` is noted in the results, ``parent`` is the process without which a worker ends.
    """

    loaded: Loaded
    tasks: TaskSet
    cells: Sequence[Cell]
    cost: LMCost | None = None
    batch_size: int = 16
    max_new_tokens: int = 16
    share: bool = True
    longest: Mapping[str, int] = field(default_factory=dict)
    frames: int | None = None
    cache_bytes: int = CACHE_BYTES
    part: str | None = None
    parent: int | None = None

    @classmethod
    def of(
        cls,
        options: RunOptions,
        loaded: Loaded,
        tasks: TaskSet,
        cells: Sequence[Cell],
        cost: LMCost | None,
        part: str | None = None,
    ) -> Sweep:
        """As `options` say."""
        return cls(
            loaded,
            tasks,
            cells,
            cost,
            options.batch_size,
            LONGEST,
            options.share,
            longest_answers(options, tasks),
            options.num_frames,
            options.cache_bytes,
            part,
        )

    @property
    def model(self) -> nn.Module:
        """The model under test."""
        return self.loaded.model

    def total(self) -> int:
        """Number of (sample, cell) pairs."""
        return len(self.cells) * len(self.tasks.questions)

    def limit(self, question: Question) -> int:
        """Longest answer to a question, in tokens."""
        return self.longest.get(question.task, self.max_new_tokens)

    def chunks(self) -> list[list[list[Question]]]:
        """The questions of a few images each, see ``deal``."""
        return deal(self.tasks.groups(), self.batch_size)


def result_row(sweep: Sweep, cell: Cell, row: Row, answer: Answer) -> dict[str, Any]:
    """One line of the results file."""
    q, m, text = row.question, answer.measured, len(row.ids) - row.visual
    total = row.whole or m.total  # of smaller pictures: what they would have been
    scorer = metric(q.metric)
    line: dict[str, Any] = {
        "cell": cell.spec,
        "method": cell.method,
        "keep": cell.keep,
        "seed": cell.seed,
        "shard": sweep.part,
        "question_id": q.question_id,
        "task": q.task,
        "image_id": q.image_id,
        "question": q.question,
        "answer": q.answer,
        "prediction": answer.text,
        "parsed": scorer.parse(q, answer.text),
        "score": scorer.score(q, answer.text),
        "prompt_tokens": len(row.ids),
        "visual_total": total,
        "visual_kept": m.kept,
        "visual_mean_per_layer": round(m.mean, 3),
        "visual_per_layer": list(m.per_layer),
        **({"asked_alone": m.asked} if m.asked else {}),
        **({"own_flops": m.own} if m.own else {}),
    }
    if sweep.cost is not None:
        lengths, full = [text + n for n in m.per_layer], [text + row.total] * len(m.per_layer)
        line |= {
            "lm_flops": sweep.cost.flops(lengths, m.asked) + m.own,
            "lm_flops_unpruned": sweep.cost.flops(full),
            "kv_bytes": sweep.cost.kv_bytes(lengths),
            "kv_bytes_unpruned": sweep.cost.kv_bytes(full),
        }
    return line


class _Chunk:
    """Model inputs of the questions about a few images, made when they are first needed."""

    def __init__(self, sweep: Sweep, small: SmallRows):
        self.sweep, self.small = sweep, small
        self._rows: dict[str, Row] = {}

    def rows(self, questions: Sequence[Question], cell: Cell) -> list[Row]:
        """Rows of questions about the same image, as `cell` shows it."""
        seen: dict[Any, Any] = {}

        def visuals(q: Question) -> Any:
            key = (q.media, q.kind, q.task if q.kind != "image" else "")  # a task says how many frames
            if key not in seen:
                seen[key] = self.sweep.tasks.visuals(q, self.sweep.frames)
            return seen[key]

        processor, config = self.sweep.loaded.processor, self.sweep.model.config
        with pictures_once(processor):
            for q in questions:
                if q.question_id not in self._rows:
                    self._rows[q.question_id] = make_row(processor, config, visuals(q), q)
        rows = [self._rows[q.question_id] for q in questions]
        if not cell.small:
            return rows
        return [self.small.shown(cell, row, visuals(row.question)) for row in rows]


def _alike(sweep: Sweep, groups: Sequence[list[Row]]) -> dict[tuple[int, str], list[list[Row]]]:
    """The groups, each about one visual input, by longest answer and modality, of which a batch has one."""
    found: dict[tuple[int, str], list[list[Row]]] = {}
    for group in groups:
        parts: dict[tuple[int, str, tuple[str, ...], int], list[Row]] = {}
        for row in group:
            key = (sweep.limit(row.question), row.modality, row.question.media, row.visual)
            parts.setdefault(key, []).append(row)
        for (limit, modality, _, _), part in parts.items():
            found.setdefault((limit, modality), []).append(part)
    return found


def _answers(
    sweep: Sweep, cell: Cell, features: Features, groups: Sequence[list[Row]], branching: Branching | None
) -> Iterator[list[tuple[Row, Answer]]]:
    """Answers to the groups' questions, batch by batch."""
    model, processor = sweep.model, sweep.loaded.processor
    reuse = reuses_encoder(model)
    if reuse:  # before wrapping for this cell: the tower runs under another wrapper
        rows = list(itertools.chain(*groups))
        encoded = {id(row): output for row, output in zip(rows, features.get_all(cell, rows), strict=True)}
        yield []  # a moment to look at the clock
    share = reuse and sweep.share and shares_prefix(model)
    layers = layers_before_choice(cell, model) if share and cell.reads_text else 0
    share = share and (layers > 0 or not cell.reads_text)
    alike = _alike(sweep, groups)
    packed = [(limit, pack) for (limit, _), same in alike.items() for pack in packs(same, sweep.batch_size) if share]
    vision = [[encoded[id(group[0])] for group in pack] for _, pack in packed]
    # of the unwrapped model, too
    states = [
        prefix_states(model, processor, pack, seen, layers) if layers else None
        for (_, pack), seen in zip(packed, vision, strict=True)
    ]
    branching = branching and branching.under(cell)
    with pruned(model, cell) as wrapped:
        for (limit, pack), seen, behind in zip(packed, vision, states, strict=True):
            if behind is None:
                yield from answer_shared(wrapped, processor, pack, seen, limit, sweep.batch_size, branching)
            else:
                yield from answer_behind(wrapped, processor, pack, seen, behind, limit, sweep.batch_size)
        for (limit, _), same in alike.items():
            alone = [] if share else sorted(itertools.chain(*same), key=lambda r: len(r.ids))
            for batch in batches(alone, sweep.batch_size):
                outputs = [encoded[id(r)] for r in batch] if reuse else None
                yield list(zip(batch, answer_plain(wrapped, processor, batch, outputs, limit), strict=True))


class Results(Protocol):
    """Where rows go, and which are there: see ``ResultStore``."""

    def __contains__(self, key: Key) -> bool:
        """Whether the row of (cell, question id) is there."""

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take rows."""


def missing(sweep: Sweep, store: Results) -> int:
    """How many of the sweep's answers are not there yet."""
    return sum((cell.spec, q.question_id) not in store for cell in sweep.cells for q in sweep.tasks.questions)


def _nothing(cell: str, count: int, found: bool) -> None:
    pass


def run_sweep(
    sweep: Sweep, store: Results, advance: Advance = _nothing, claims: Claims | None = None, wait: bool = True
) -> None:
    """Compute what `store` lacks.

    Parameters
    ----------
    sweep : Sweep
        What to run.
    store : Results
        Receives a row per sample and cell, batch by batch, and knows which are done.
    advance : callable
        Called with a cell's spec, a number of its answers, and whether they were found done (else just computed); and
        with ``ENCODING`` and the number of images whose features were computed or found not to be needed.
    claims : Claims, optional
        Shares the work with other processes that write to the same folder.
    wait : bool
        Wait for what others have claimed, and do it where they died; else leave it to them.
    """
    chunks = sweep.chunks()
    features = Features(sweep.model, sweep.cells, sweep.cache_bytes)
    shares = sweep.share and reuses_encoder(sweep.model) and shares_prefix(sweep.model)
    branching = Branching(sweep.model, sweep.loaded.processor, sweep.batch_size) if shares else None
    order = turns(len(chunks), getattr(store, "number", 0))
    left = [(i, cell) for i in order for cell in sweep.cells]
    for waiting in (False, True) if claims and wait else (False,):
        left = _pass(sweep, store, advance, claims, waiting, [(chunks[i], i, c) for i, c in left], features, branching)


def _pass(
    sweep: Sweep,
    store: Results,
    advance: Advance,
    claims: Claims | None,
    wait: bool,
    work: Sequence[tuple[list[list[Question]], int, Cell]],
    features: Features,
    branching: Branching | None,
) -> list[tuple[int, Cell]]:
    """Go through the work once; returns what others were at."""
    busy: list[tuple[int, Cell]] = []
    encoded: set[int] = set()
    small = SmallRows(sweep.loaded.processor, sweep.model)
    chunk, at = _Chunk(sweep, small), -1
    for groups, i, cell in work:
        name = f"{getattr(store, 'config', '')} {cell.spec} {groups[0][0].question_id}"
        if claims and not claims.take(name, wait):
            busy.append((i, cell))
            continue
        try:
            if claims:
                store.refresh()  # type: ignore[attr-defined]
            if i != at:
                chunk, at = _Chunk(sweep, small), i
                if all((c.spec, q.question_id) in store for c in sweep.cells for g in groups for q in g):
                    encoded.add(i)
                    advance(ENCODING, len(groups), True)
            todo = [[q for q in g if (cell.spec, q.question_id) not in store] for g in groups]
            advance(cell.spec, sum(map(len, groups)) - sum(map(len, todo)), True)
            rows = [chunk.rows(g, cell) for g in todo if g]
            for answered in _answers(sweep, cell, features, rows, branching) if rows else ():
                orphaned(sweep)
                if not answered:
                    if not cell.vision_stage and i not in encoded:
                        encoded.add(i)
                        advance(ENCODING, len(groups), False)
                    continue
                store.append(result_row(sweep, cell, row, answer) for row, answer in answered)
                advance(cell.spec, len(answered), False)
        finally:
            if claims:
                claims.give_back(name)
    return busy


def orphaned(sweep: Sweep) -> None:
    """End a worker whose parent is gone: nobody waits for it, and a new run may be at the same work."""
    if sweep.parent is not None and os.getppid() != sweep.parent:
        os._exit(1)
