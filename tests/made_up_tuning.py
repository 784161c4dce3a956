"""Settings whose true share of the unpruned accuracy is known, and their made-up answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from vtc.eval.tasks.questions import Question
from vtc.eval.tune.confirm import Trialled, confirm, sequence, winner
from vtc.eval.tune.split_questions import divide, rungs_of
from vtc.eval.tune.successive_halving import FINALISTS, Answered, Rung, search
from vtc.eval.vlm.pruning_settings import UNPRUNED


def questions_about(images: int, each: int, tasks: Sequence[str] = ("a", "b")) -> list[Question]:
    """Questions of which task comes after task, `each` about an image."""
    return [
        Question(f"q{i}-{k}", tasks[(i + k) % len(tasks)], f"i{i}", "?", "yes")
        for i in range(images)
        for k in range(each)
    ]


@dataclass
class World:
    """One draw of everybody's answers.

    Parameters
    ----------
    settings : mapping
        True share and cost of each.
    right : float
        Accuracy without pruning.
    gained : float
        Share of the unpruned model's errors that pruning repairs; the losses make up for it.
    alike : float
        Correlation of the losses on one image: 0 spreads them evenly, 1 loses whole images.
    """

    settings: Mapping[str, tuple[float, float]]
    questions: Sequence[Question]
    seed: int
    right: float = 0.9
    gained: float = 0.0
    alike: float = 0.0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        number: dict[str, int] = {}
        image = np.array([number.setdefault(q.image_id, len(number)) for q in self.questions])
        ids = [q.question_id for q in self.questions]
        plain = rng.random(len(ids)) < self.right
        self.scores = {UNPRUNED.spec: dict(zip(ids, plain.astype(float).tolist(), strict=True))}
        for name, (share, _) in self.settings.items():
            loss = 1 - share + self.gained * (1 - self.right) / self.right
            rate = np.full(len(number), loss)
            if 0 < self.alike < 1 and 0 < loss < 1:
                strength = (1 - self.alike) / self.alike
                rate = rng.beta(loss * strength, (1 - loss) * strength, len(number))
            elif self.alike == 1:
                rate = (rng.random(len(number)) < loss).astype(float)
            lost, gained = rng.random(len(ids)) < rate[image], rng.random(len(ids)) < self.gained
            found = np.where(plain, ~lost, gained).astype(float)
            self.scores[name] = dict(zip(ids, found.tolist(), strict=True))

    def __call__(self, specs: Sequence[str], questions: Sequence[Question], what: str) -> dict[str, Answered]:
        costs = {UNPRUNED.spec: 1.0, **{name: cost for name, (_, cost) in self.settings.items()}}
        return {s: Answered({q.question_id: self.scores[s][q.question_id] for q in questions}, costs[s]) for s in specs}


@lru_cache(maxsize=8)
def _divided(questions: tuple[Question, ...], settings: int, target: float) -> tuple[Any, ...]:
    held_in, held_out = divide(questions, 0.5)
    return rungs_of(held_in, settings, FINALISTS, 2.0, target), held_out


def tune(world: World, target: float) -> tuple[list[Rung], list[Trialled]]:
    """Split, search and confirm."""
    rungs, held_out = _divided(tuple(world.questions), len(world.settings), target)
    found = search(list(world.settings), rungs, world, target)
    chain = sequence(found[-1].alive)
    answered = world([UNPRUNED.spec, *(s.spec for s in chain)], held_out, "")
    return found, confirm(chain, held_out, answered[UNPRUNED.spec].scores, answered, target) if chain else []


def chosen(world: World, target: float) -> str | None:
    """The setting that is returned."""
    best = winner(tune(world, target)[1])
    return best.spec if best else None
