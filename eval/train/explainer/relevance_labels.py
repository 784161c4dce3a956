"""Labels of the explainer: for questions that the model answers rightly, relevance and first-layer attention."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtc.eval.inspect.relevance import NOTHING, explain, inputs_of
from vtc.eval.sweep.fingerprint import KEYED, subject
from vtc.eval.sweep.results_store import ResultStore
from vtc.eval.tasks.metrics import metric
from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.vlm.encode_once import encode, encoder_inputs, reuses_encoder
from vtc.eval.vlm.loading import Loaded, software
from vtc.eval.vlm.prompts import Row, make_row, media_form, prompt_template

CELL = "relevance"  # what the rows are called in their store
VERSION = 1  # of what a row holds


@dataclass(frozen=True)
class Sample:
    """One span of one rightly answered question, newline tokens left out.

    ``attention [n]`` is what the network reads, ``relevance [n]`` what the oracle says, both float32.
    """

    question_id: str
    image_id: str
    attention: Tensor
    relevance: Tensor


def pack(x: Tensor) -> str:
    """A float32 vector as text."""
    return base64.b64encode(x.detach().numpy().astype("<f4").tobytes()).decode()


def unpack(text: str) -> Tensor:
    """The vector that ``pack`` was given."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32))


def label_configuration(loaded: Loaded, tasks: TaskSet, max_new_tokens: int) -> dict[str, Any]:
    """Everything that a question's label depends on."""
    versions = software()
    return {
        "labels": VERSION,
        **subject(loaded, tasks),
        "prompt": prompt_template(loaded.processor),
        **media_form(tasks.questions),
        "max_new_tokens": max_new_tokens,
        **{name: versions[name] for name in KEYED},
    }


def _prompts(loaded: Loaded, tasks: TaskSet, questions: Sequence[Question]) -> Iterator[tuple[Row, dict[str, Any]]]:
    """The questions of one image with their inputs; the vision tower runs once where it can."""
    from vtc.api import compressed

    encoded: Any = None
    for question in questions:
        row = make_row(loaded.processor, loaded.model.config, tasks.visuals(question), question)
        inputs = inputs_of(row)
        if reuses_encoder(loaded.model) and question.kind == "image":
            if encoded is None:
                with compressed(loaded.model, NOTHING):
                    encoded = encode(loaded.model, row)
            inputs = {k: v for k, v in inputs.items() if k not in row.vision}
            inputs |= encoder_inputs([row], [encoded], loaded.model)
        yield row, inputs


def label(loaded: Loaded, row: Row, inputs: dict[str, Any], max_new_tokens: int) -> dict[str, Any]:
    """One question's row of the store: whether it was answered rightly, and then the spans' labels."""
    found = explain(loaded.model, inputs, max_new_tokens=max_new_tokens)
    text = loaded.processor.decode(found.answer, skip_special_tokens=True).strip()
    question = row.question
    right = metric(question.metric).score(question, text) == 1.0
    line: dict[str, Any] = {
        "cell": CELL,
        "question_id": question.question_id,
        "task": question.task,
        "image_id": question.image_id,
        "answer": question.answer,
        "prediction": text,
        "right": right,
        "heads": found.heads,
        "width": found.width,
    }
    if right:
        keep = [~layout.newline for layout in found.layouts]
        spans = zip(keep, found.attention, found.relevance, strict=True)
        line["spans"] = [{"attention": pack(a[k]), "relevance": pack(r[k])} for k, a, r in spans]
    return line


def make_labels(
    loaded: Loaded, tasks: TaskSet, store: ResultStore, max_new_tokens: int, done: Callable[[int], object]
) -> None:
    """Fill `store` with a row for each question; those that are there already are not made again.

    Parameters
    ----------
    done : callable
        Is told of each question, with 1.
    """
    for group in tasks.groups():
        missing = [q for q in group if (CELL, q.question_id) not in store]
        done(len(group) - len(missing))
        for row, inputs in _prompts(loaded, tasks, missing):
            store.append([label(loaded, row, inputs, max_new_tokens)])
            done(1)


def samples(store: ResultStore, tasks: TaskSet) -> list[Sample]:
    """What can be trained on: every span of the rightly answered questions that the text behind it looks at."""
    found = []
    for question in tasks.questions:
        row = store.rows[CELL, question.question_id]
        for span in row.get("spans", ()):
            sample = Sample(
                question.question_id, question.image_id, unpack(span["attention"]), unpack(span["relevance"])
            )
            if sample.attention.sum() > 0 and sample.relevance.sum() > 0:
                found.append(sample)
    return found
