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
from torch import Tensor, nn
from torch.nn.functional import pad

from vtc.eval.tasks.metrics import metric
from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.vlm.encode_once import core_of, encoder_inputs, reuses_encoder, to_device
from vtc.eval.vlm.feature_cache import Features, pruned
from vtc.eval.vlm.prompts import Row, make_row
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell
from vtc.eval.vlm.second_turn import behind_first
from vtc.eval.vlm.smaller_pictures import SmallRows
from vtc.models.stock.call_arguments import cache_of, given

from .answer import generate, measure
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
    """Why second questions can't be asked of this model; empty where they can.

    The model itself is asked the first pair, unpruned: on the cache of the first turn, and the whole chat anew.
    """
    if not pairs:
        return "no picture has two questions"
    if not reuses_encoder(sweep.model):
        return "this model does not take its vision tower's output back"
    pair, loaded = pairs[0], sweep.loaded
    try:
        behind = behind_first(loaded.processor, pair.first.question, pair.first.answer, pair.second.question)
    except ValueError as error:
        return str(error)
    row = make_row(loaded.processor, loaded.model.config, sweep.tasks.visuals(pair.first, sweep.frames), pair.first)
    if not _goes_on(sweep.model, row, behind, Features(sweep.model, [UNPRUNED]).get(UNPRUNED, row)):
        return "this model answers otherwise on the cache of a first turn than when the whole chat is read anew"
    return ""


@torch.no_grad()
def _goes_on(model: nn.Module, row: Row, behind: Tensor, encoded: Any) -> bool:
    """Whether a second turn on a cache is the whole chat."""
    kept = _second_turn(model, row, behind, _first_turn(model, row, encoded))
    tokens = {name: pad(value, (0, len(behind)))[None] for name, value in row.tokens.items()}
    whole = {**tokens, **_whole(row, behind), **encoder_inputs([row], [encoded], model)}
    found, wanted = (_next_logits(model, inputs) for inputs in (kept, whole))
    tolerance = torch.finfo(wanted.dtype).eps ** 0.5 * float(wanted.abs().max())
    return bool((found - wanted).abs().max() <= tolerance)


def _next_logits(model: Any, inputs: dict[str, Any]) -> Tensor:
    """`[V]` of the first token that a model generates."""
    given_here = {name: to_device(value, model) for name, value in inputs.items()}
    out = model.generate(
        **given_here, do_sample=False, max_new_tokens=1, output_logits=True, return_dict_in_generate=True
    )
    found: Tensor = out.logits[0][0]
    return found


def _first_turn(model: nn.Module, row: Row, encoded: Any) -> Any:
    """The cache behind a first question."""
    inputs = {name: to_device(value, model) for name, value in row.text.items()}
    return cache_of(model(**inputs, **encoder_inputs([row], [encoded], model), use_cache=True, logits_to_keep=1))


def _whole(row: Row, behind: Tensor) -> dict[str, Tensor]:
    ids = torch.cat([row.ids, behind])[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _second_turn(model: nn.Module, row: Row, behind: Tensor, cache: Any) -> dict[str, Any]:
    """What a model is given that goes on behind a first turn."""
    return {**_whole(row, behind), **given(core_of(model), cache=cache)}


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


def _asked(sweep: Sweep, cell: Cell, pair: Pair, row: Row, behind: Tensor, features: Features) -> dict[str, Any]:
    encoded = features.get(cell, row)
    with pruned(sweep.model, cell) as model:
        cache = _first_turn(model, row, encoded)
        measured = measure(model, [0], [row])[0]
        batch = _second_turn(model, row, behind, cache)
        text = generate(model, sweep.loaded.processor, batch, sweep.limit(pair.second))[0]
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
