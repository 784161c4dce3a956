"""Training and evaluation on the bundled model under vtc, each question a sequence of its own.

For methods whose tokens depend on the question, which can't be packed behind one picture. The wrapped model runs as it
is, but for its tower: what that made of the pictures lies there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pictures import Asked, Evaluation
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vtc.eval.train.basics.distributed_ranks import Ranks
from vtc.eval.train.basics.loop import Place, run_steps
from vtc.eval.train.language.pack_questions import text_ids
from vtc.eval.train.language.question_batches import _END_WEIGHT, _TASK_WEIGHTS
from vtc.eval.train.scenes.questions import Question
from vtc.eval.train.scenes.vocabulary import ASSISTANT_ID, BOS_ID, EOS_ID, PAD_ID, USER_ID

PATCHES = 576


@dataclass(frozen=True)
class Rows:
    """Sequences: prompts padded on the left to `width` columns, behind them the answers."""

    inputs: dict[str, Tensor]
    targets: Tensor  # [rows, longest answer], -100 behind its end
    weights: Tensor
    width: int


def rows_of(features: Tensor, questions: Sequence[Sequence[Question]], image_token: int) -> Rows:
    """One sequence a question, with the features of its picture `[B, 576, D]` in the place of pixels."""
    asked = [(i, q) for i, some in enumerate(questions) for q in some]
    prompts = [[BOS_ID, USER_ID, *[image_token] * PATCHES, *text_ids(q.text), ASSISTANT_ID] for _, q in asked]
    answers = [[*text_ids(q.answer), EOS_ID] for _, q in asked]
    width, longest = max(map(len, prompts)), max(map(len, answers))
    lines = [
        [PAD_ID] * (width - len(p)) + p + a + [PAD_ID] * (longest - len(a))
        for p, a in zip(prompts, answers, strict=True)
    ]
    mask = [
        [0] * (width - len(p)) + [1] * (len(p) + len(a)) + [0] * (longest - len(a))
        for p, a in zip(prompts, answers, strict=True)
    ]
    targets = torch.tensor([a + [-100] * (longest - len(a)) for a in answers])
    task = torch.tensor([[_TASK_WEIGHTS.get(q.task, 1.0)] for _, q in asked]).expand(targets.shape)
    inputs = {
        "input_ids": torch.tensor(lines),
        "attention_mask": torch.tensor(mask),
        "pixel_values": features[[i for i, _ in asked]],
    }
    return Rows(inputs, targets, torch.where(targets == EOS_ID, _END_WEIGHT, task), width)


def given_features(model: nn.Module) -> None:
    """Have the tower give back what it is given as pixels, `[B, 576, D]`, where the model reads it."""
    tower = model.model.vision_tower
    depth = tower.config.num_hidden_layers

    def forward(pixel_values: Tensor, *_: Any, **__: Any) -> BaseModelOutputWithPooling:
        with_class = F.pad(pixel_values, (0, 0, 1, 0))
        return BaseModelOutputWithPooling(last_hidden_state=with_class, hidden_states=(with_class,) * (depth + 1))

    tower.forward = forward


@contextmanager
def prompted(model: nn.Module, width: int) -> Iterator[None]:
    """Prompts end before column `width`: methods read no answer."""
    local = model.vtc.adapter.local
    before, local.prompt = local.prompt, width
    try:
        yield
    finally:
        local.prompt = before


def logits_of(model: nn.Module, rows: Rows) -> Tensor:
    """What the model says in the places of the answers, `[rows, longest, V]`."""
    with prompted(model, rows.width):
        found: Tensor = model(**rows.inputs, use_cache=False).logits
    return found[:, rows.width - 1 : -1]


def train(
    folder: Path, name: str, steps: int, model: nn.Module, parts: dict[str, Any], draw: Callable[[int], Asked]
) -> None:
    """Train `parts` (with an "optimizer") of a wrapped model; a killed run goes on from its checkpoint."""

    def train_step(step: int) -> dict[str, float]:
        asked = draw(step)
        rows = rows_of(asked.features.float(), asked.questions, model.config.image_token_id)
        logits = logits_of(model, rows)
        losses = F.cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), reduction="none")
        weights = rows.weights.flatten() * (rows.targets != -100).flatten()
        loss = (losses * weights).sum() / weights.sum()
        parts["optimizer"].step(loss, step)
        return {"loss": loss.item(), "right": float(_right(logits, rows).float().mean())}

    run_steps(Place(folder, Ranks(), save_seconds=60, log_every=10), name, steps, train_step, parts)


def _right(logits: Tensor, rows: Rows) -> Tensor:
    return ((logits.argmax(-1) == rows.targets) | (rows.targets == -100)).all(1)


@torch.no_grad()
def answered(model: nn.Module, asked: Evaluation) -> dict[str, float]:
    """1 or 0 of every question: whether the answer, its end included, is what the wrapped model would say."""
    scores: dict[str, float] = {}
    for features, questions, ids in zip(asked.features, asked.questions, asked.ids, strict=True):
        rows = rows_of(features[None].float(), [questions], model.config.image_token_id)
        scores.update(zip(ids, _right(logits_of(model, rows), rows).float().tolist(), strict=True))
    return scores
