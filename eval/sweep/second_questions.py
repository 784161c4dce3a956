"""A second question about each of some pictures, behind a first one that a method has pruned for.

A method that reads the question keeps what the first one needs: later ones pay (MetaCompress, arXiv 2603.21701). The
first answer is the right one, whatever the model would say, so that only what is seen differs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vtc.eval.tasks.metrics import metric
from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.vlm.encode_once import core_of, encoder_inputs, reuses_encoder, to_device
from vtc.eval.vlm.feature_cache import Features, pruned
from vtc.eval.vlm.prompts import Row, make_row
from vtc.eval.vlm.pruning_settings import Cell
from vtc.eval.vlm.second_turn import behind_first
from vtc.eval.vlm.smaller_pictures import SmallRows
from vtc.models.stock.call_arguments import cache_of, given

from .answer import generate, measure, shares_prefix
from .results_store import ResultStore
from .sweep_run import Sweep, orphaned

SECOND = "second question"


@dataclass(frozen=True)
class Pair:
    """Two questions about one picture."""

    first: Question
    second: Question

    @property
    def name(self) -> str:
        """What the second answer is stored under."""
        return f"{self.second.question_id} behind {self.first.question_id}"


def pairs_of(tasks: TaskSet, count: int) -> list[Pair]:
    """A pair for each of the first `count` pictures that have two questions or more, of two tasks where there are.

    The same ones in every run, for the ids alone decide.
    """
    found: list[Pair] = []
    for group in tasks.groups():
        able = [q for q in group if q.kind == "image" and len(q.media) == 1]
        if len(able) < 2 or len(found) == count:
            continue
        draw = random.Random(f"second question/{group[0].image_id}")
        first = draw.choice(able)
        others = [q for q in able if q.task != first.task] or [q for q in able if q is not first]
        found.append(Pair(first, draw.choice(others)))
    return found


def can_ask(sweep: Sweep, pairs: Sequence[Pair]) -> str:
    """Why second questions can't be asked of this model; empty where they can."""
    if not pairs:
        return "no picture has two questions"
    if not (reuses_encoder(sweep.model) and shares_prefix(sweep.model)):
        return "this model keeps more than its cache between two turns"
    try:
        behind_first(sweep.loaded.processor, pairs[0].first.question, "yes", pairs[0].second.question)
    except ValueError as error:
        return str(error)
    return ""


@torch.no_grad()
def ask_second(
    sweep: Sweep, pairs: Sequence[Pair], store: ResultStore, advance: Callable[[int], None] = lambda n: None
) -> None:
    """Answer what `store` lacks, picture by picture; `advance` is told of each answer, found or given."""
    loaded, small = sweep.loaded, SmallRows(sweep.loaded.processor, sweep.model)
    features = Features(sweep.model, sweep.cells, sweep.cache_bytes)
    for pair in pairs:
        cells = [cell for cell in sweep.cells if (cell.spec, pair.name) not in store]
        advance(len(sweep.cells) - len(cells))
        if not cells:
            continue
        visuals = sweep.tasks.visuals(pair.first, sweep.frames)
        row = make_row(loaded.processor, loaded.model.config, visuals, pair.first)
        behind = behind_first(loaded.processor, pair.first.question, pair.first.answer, pair.second.question)
        for cell in cells:
            orphaned(sweep)
            store.append([_asked(sweep, cell, pair, small.shown(cell, row, visuals), behind, features)])
            advance(1)


def _asked(sweep: Sweep, cell: Cell, pair: Pair, row: Row, behind: torch.Tensor, features: Features) -> dict[str, Any]:
    encoded = features.get(cell, row)
    with pruned(sweep.model, cell) as model:
        inputs = {name: to_device(value, sweep.model) for name, value in row.text.items()}
        output = model(**inputs, **encoder_inputs([row], [encoded], sweep.model), use_cache=True, logits_to_keep=1)
        measured = measure(model, [0], [row])[0]
        ids = torch.cat([row.ids, behind])[None]
        text = generate(
            model, sweep.loaded.processor, {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            sweep.limit(pair.second), **given(core_of(model), cache=cache_of(output)),
        )[0]  # fmt: skip
    scorer = metric(pair.second.metric)
    return {
        "cell": cell.spec,
        "question_id": pair.name,
        "task": SECOND,
        "image_id": pair.second.image_id,
        "first": pair.first.question,
        "question": pair.second.question,
        "answer": pair.second.answer,
        "prediction": text,
        "parsed": scorer.parse(pair.second, text),
        "score": scorer.score(pair.second, text),
        "visual_total": row.total,
        "visual_kept": measured.kept,
        "visual_mean_per_layer": round(measured.mean, 3),
    }
