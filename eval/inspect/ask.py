"""``vtc ask``: one question about one picture."""

from __future__ import annotations

import time
from dataclasses import dataclass

from PIL import Image

from vtc.eval.sweep.answer import answer_plain
from vtc.eval.sweep.sweep_run import pruned
from vtc.eval.tasks.questions import Question
from vtc.eval.vlm.loading import Loaded
from vtc.eval.vlm.prompts import make_row
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell, make_cell, saved_setting


@dataclass(frozen=True)
class Reply:
    """An answer, the visual tokens behind it and the seconds it took, loading left out."""

    text: str
    kept: int
    total: int
    seconds: float


def ask(loaded: Loaded, cell: Cell, image: Image.Image, question: str, max_new_tokens: int = 64) -> Reply:
    """Answer `question` about `image` under one setting."""
    start = time.perf_counter()
    row = make_row(loaded.processor, loaded.model.config, image, Question("ask", "", "image", question, ""))
    with pruned(loaded.model, cell) as model:
        answer = answer_plain(model, loaded.processor, [row], None, max_new_tokens)[0]
    return Reply(answer.text, answer.measured.kept, answer.measured.total, time.perf_counter() - start)


def saved_cell(model: str | None) -> Cell:
    """The setting saved beside a model (``vtc_config.json``); unpruned if there is none."""
    from vtc.config import find_config
    from vtc.model_sources import find_source

    found = find_config(find_source(model)) if model is not None else None
    return UNPRUNED if found is None else make_cell(saved_setting(found), None)
