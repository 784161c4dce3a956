"""Runs a pipeline on pictures that the engine has encoded: the same steps, on the same objects, as in a wrapped model.

A picture's rows are laid out as the columns of a prompt of its own, between the text that its method may read, and go
through the pruning steps of the language model's side. Nothing is known of the other pictures of a request, because
what is chosen must depend on nothing that its cache entry does not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vtc.models.language.decoder_signals import EMBEDDINGS
from vtc.models.language.forward_state import Run
from vtc.models.language.pruning_step import prune_step
from vtc.models.layout.items_behind_placeholders import Fed
from vtc.models.layout.model_parts import Parts
from vtc.models.layout.spans import make_batch
from vtc.models.layout.vision_call_record import VisionRecord
from vtc.models.selection.column_indices import all_ids, gather_columns
from vtc.pipeline_text import Pipeline

from .kept_memory import Kept
from .settings import DEPTH


@dataclass(frozen=True)
class Picture:
    """One item of a request.

    Attributes
    ----------
    features : list of Tensor
        Of each of its spans `[n, D]`.
    before, after : Tensor
        Input embeddings of the text around it, `[t, D]`; empty where no method reads any.
    question : str
        The words behind the last picture of its request.
    """

    features: list[Tensor]
    before: Tensor | None = None
    after: Tensor | None = None
    question: str = ""

    def row(self) -> Tensor:
        """The columns of its prompt."""
        return torch.cat([x for x in (self.before, *self.features, self.after) if x is not None])


def select(pipeline: Pipeline, pictures: Sequence[Picture], record: VisionRecord, parts: Parts) -> list[Kept]:
    """What `pipeline` leaves of each of `pictures`.

    Parameters
    ----------
    pipeline : tuple of Pruner
        Methods of the input stage.
    pictures : sequence of Picture
        One a row.
    record : VisionRecord
        Lengths, layouts and encoder signals of all their spans, in order.
    parts : Parts
        Of the engine's model.

    Returns
    -------
    list of Kept
        Ids among all tokens of a picture, whatever spans they are of; with vectors where the pipeline merges.
    """
    run, hidden = _opened(pipeline, pictures, record, parts)
    for pruner in pipeline:
        for stop in pruner.stops(DEPTH):
            hidden = prune_step(run, pruner, stop, hidden, parts)
    spans = torch.arange(len(run.present), device=run.ids.device)
    columns = run.token_columns(run.ids, spans)
    rows = gather_columns(hidden[run.batch.samples.to(hidden.device)], columns, -2)
    merges = any(p.merges for p in pipeline)
    found, first = [], 0
    for picture in pictures:
        ids, vectors, base = [], [], 0
        for i, span in enumerate(picture.features, first):
            ids.append(run.ids[i, : run.present[i]] + base)
            vectors.append(rows[i, : run.present[i]])
            base += len(span)
        first += len(picture.features)
        found.append(Kept(torch.cat(ids), torch.cat(vectors) if merges else None))
    return found


def _opened(pipeline: Pipeline, pictures: Sequence[Picture], record: VisionRecord, parts: Parts) -> tuple[Run, Tensor]:
    """A run whose samples are `pictures`, and its columns `[B, L, D]`."""
    rows = [p.row() for p in pictures]
    hidden = pad_sequence(rows, batch_first=True)
    device, length = hidden.device, hidden.shape[1]
    mask = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=device)
    for i, picture in enumerate(pictures):
        start = 0 if picture.before is None else len(picture.before)
        mask[i, start : start + sum(map(len, picture.features))] = True
    columns = torch.arange(length, device=device).expand(len(rows), length)
    valid = columns < torch.tensor([len(r) for r in rows], device=device)[:, None]
    batch, padded = make_batch({"image": mask}, {"image": Fed(record, record.lengths)}, valid, length)
    slots = torch.where(valid, columns, -1)
    run = Run(length, 0, columns, slots, columns, valid, padded, batch)
    run.present, run.ids, run.end = list(batch.lengths), all_ids(batch.lengths, device), length
    run.find_pictures = parts.family.pictures
    if any(p.uses_question for p in pipeline):
        asked: Any = True  # no tokenizer is needed: they are words already
        run.words, run.token_ids, run.questions = asked, columns, [p.question for p in pictures]
    run.captured[EMBEDDINGS] = (hidden, run.current())
    return run, hidden
