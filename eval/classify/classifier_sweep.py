"""The sweep of a classifier: every cell sees the same pictures, batch by batch, and nothing is computed twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.eval.cost.prefill_cost import Measured
from vtc.eval.sweep.chunks_and_batches import batches
from vtc.eval.sweep.sweep_run import Advance, Results
from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.vlm.feature_cache import pruned
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell
from vtc.models.tower.bare_vit import VitAdapter

from .classifier import Classifier


@dataclass
class ClassifySweep:
    """What to run; ``places`` has the output of each class of the data."""

    classifier: Classifier
    tasks: TaskSet
    places: Mapping[str, int]
    cells: Sequence[Cell]
    batch_size: int = 64

    def name_of(self, output: int) -> str:
        """The class of an output: as the data calls it, else as the model does, else its number."""
        known = {place: name for name, place in self.places.items()}
        names = self.classifier.names
        return known.get(output) or (names[output] if names else str(output))


def rank_of(logits: Tensor, output: Tensor) -> Tensor:
    """The place of the right output among all, from 1; ties go to the lowest index, not a number comes last.

    Parameters
    ----------
    logits : Tensor
        `[B, outputs]`.
    output : Tensor
        `[B]` int64, the right ones.
    """
    order = logits.float().nan_to_num(float("-inf")).sort(dim=1, descending=True, stable=True).indices
    place = (order == output[:, None]).int().argmax(1) + 1
    lost = logits.gather(1, output[:, None])[:, 0].isnan()
    return place.masked_fill(lost, logits.shape[1])


def measured_tokens(model: Any, depth: int, total: int) -> Measured:
    """Patches that each block of the tower saw in the last forward, the same for every image."""
    handle = getattr(model, "vtc", None)
    per_layer, kept = [total] * depth, total
    for step in handle.report.steps if handle is not None else ():
        kept = len(step.kept[0])
        per_layer[step.layer :] = [kept] * (depth - step.layer)
    return Measured(total, kept, tuple(per_layer))


class Tower:
    """The tower's depth, and how many patches it makes of a picture."""

    def __init__(self, classifier: Classifier, images: Tensor):
        adapter = VitAdapter(classifier.model, ())
        self.depth, seen = len(adapter.blocks), []
        hook = adapter.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            with torch.no_grad():
                classifier.logits(images[:1])
        finally:
            hook.remove()
        self.total = seen[0].shape[1 if adapter.batch_first else 0] - adapter.prefix


def result_row(sweep: ClassifySweep, cell: Cell, q: Question, output: int, rank: int, m: Measured) -> dict[str, Any]:
    """One line of the results file."""
    prediction = sweep.name_of(output)
    return {
        "cell": cell.spec,
        "method": cell.method,
        "keep": cell.keep,
        "seed": cell.seed,
        "question_id": q.question_id,
        "task": q.task,
        "image_id": q.image_id,
        "answer": q.answer,
        "prediction": prediction,
        "parsed": prediction,
        "score": float(rank == 1),
        "rank": rank,
        "visual_total": m.total,
        "visual_kept": m.kept,
        "visual_mean_per_layer": round(m.mean, 3),
        "visual_per_layer": list(m.per_layer),
    }


def run_classify(sweep: ClassifySweep, store: Results, advance: Advance) -> None:
    """Compute what `store` lacks; a picture is decoded once for all cells.

    Parameters
    ----------
    sweep : ClassifySweep
        What to run.
    store : Results
        Receives the rows, batch by batch, and knows which are there.
    advance : callable
        As for ``vtc.eval.sweep.sweep_run.run_sweep``.
    """
    tower: Tower | None = None
    for part in batches(sweep.tasks.questions, sweep.batch_size):
        missing = {c.spec: [i for i, q in enumerate(part) if (c.spec, q.question_id) not in store] for c in sweep.cells}
        for spec, places in missing.items():
            advance(spec, len(part) - len(places), True)
        if not any(missing.values()):
            continue
        images = sweep.classifier.batch([sweep.tasks.image(q.image_id) for q in part])
        tower = tower or Tower(sweep.classifier, images)
        for cell in sweep.cells:
            if places := missing[cell.spec]:
                store.append(_answer(sweep, cell, [part[i] for i in places], images[places], tower))
                advance(cell.spec, len(places), False)


def _answer(
    sweep: ClassifySweep, cell: Cell, asked: Sequence[Question], images: Tensor, tower: Tower
) -> Iterator[dict[str, Any]]:
    with torch.no_grad(), pruned(sweep.classifier.model, cell) as model:
        logits = sweep.classifier.logits(images)
        tokens = measured_tokens(None if cell.spec == UNPRUNED.spec else model, tower.depth, tower.total)
    right = torch.tensor([sweep.places[q.answer] for q in asked], device=logits.device)
    ranks = rank_of(logits, right).tolist()
    named = logits.float().nan_to_num(float("-inf")).argmax(1).tolist()
    for q, output, rank in zip(asked, named, ranks, strict=True):
        yield result_row(sweep, cell, q, output, rank, tokens)
