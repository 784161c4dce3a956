"""Training and evaluation of token compressors on the bundled model with packed questions.

Questions about one picture are packed behind it, as the bundled model was trained, and each is answered as if it had
been asked alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pictures import Asked, Evaluation
from torch import Tensor, nn

from vtc.eval.train.basics.distributed_ranks import Ranks
from vtc.eval.train.basics.loop import Place, rate_factor, run_steps
from vtc.eval.train.language.pack_questions import NO_TARGET, PackedQuestions, pack
from vtc.eval.train.language.question_batches import accuracies, answer_weights

WARMUP = 20
AT_ONCE = 6  # pictures of an evaluation batch
# features `[B, 576, D]`, questions, step -> what the model says where there is a target, `[targets, V]`
Says = Callable[[Tensor, PackedQuestions, int], Tensor]


class Descent:
    """AdamW whose groups have rates of their own, with the schedule of the model's own training."""

    def __init__(self, groups: Iterable[tuple[Iterable[nn.Parameter], float]], steps: int):
        self.rates, self.parts = [], []
        for parameters, rate in groups:
            self.parts.append({"params": list(parameters), "lr": rate})
            self.rates.append(rate)
        self.adam = torch.optim.AdamW(self.parts, betas=(0.9, 0.98), weight_decay=0.0)
        self.steps = steps

    def step(self, loss: Tensor, step: int) -> None:
        """One update."""
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for part in self.parts for p in part["params"]], 1.0)
        for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
            group["lr"] = rate * rate_factor(step, self.steps, WARMUP)
        self.adam.step()

    def state_dict(self) -> dict[str, Any]:
        """See torch."""
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See torch."""
        self.adam.load_state_dict(state)


def train(folder: Path, name: str, steps: int, parts: dict[str, Any], says: Says, draw: Callable[[int], Asked]) -> None:
    """Train `parts` (with an "optimizer") for `steps`; a killed run goes on from its checkpoint."""

    def train_step(step: int) -> dict[str, float]:
        asked = draw(step)
        packed = pack(asked.questions)
        logits = says(asked.features.float(), packed, step)
        known = packed.targets != NO_TARGET
        losses = F.cross_entropy(logits, packed.targets[known], reduction="none")
        weights = answer_weights(packed, asked.questions)[known]
        loss = (losses * weights).sum() / weights.sum()
        parts["optimizer"].step(loss, step)
        scores = accuracies(packed, logits, asked.questions)
        return {"loss": loss.item(), **scores}

    run(folder, name, steps, train_step, parts)


def run(
    folder: Path, name: str, steps: int, train_step: Callable[[int], dict[str, float]], parts: dict[str, Any]
) -> None:
    """Take the steps of a training; a killed run goes on from its checkpoint."""
    run_steps(Place(folder, Ranks(), save_seconds=60, log_every=20), name, steps, train_step, parts)


@torch.no_grad()
def answered(asked: Evaluation, says: Says, at_once: int = AT_ONCE) -> dict[str, float]:
    """1 or 0 of every question: whether the answer, its end included, is what the model would say."""
    scores: dict[str, float] = {}
    for start in range(0, len(asked.questions), at_once):
        part = slice(start, start + at_once)
        packed = pack(asked.questions[part])
        known = packed.targets != NO_TARGET
        right = torch.zeros_like(known)
        right[known] = says(asked.features[part].float(), packed, 0).argmax(-1) == packed.targets[known]
        for row, ids in enumerate(asked.ids[part]):
            for name, (first, end) in zip(ids, packed.spans[row], strict=True):
                scores[name] = float(right[row, first:end].all())
    return scores
