"""The search and the confirmation part of an evaluation set, and how much work either is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vtc.eval.tasks.questions import Question, TaskSet

from .accuracy_share import perfect_bound
from .options import TuneOptions
from .split_questions import divide, rungs_of
from .successive_halving import FINALISTS, quota

FEWEST = 8  # images of either part


def images_of(questions: Sequence[Question]) -> list[str]:
    """The images that questions are about, sorted."""
    return sorted({q.image_id for q in questions})


@dataclass(frozen=True)
class Parts:
    """What is searched on, and what is held out for the confirmation."""

    search: list[Question]
    confirmation: list[Question]

    @classmethod
    def of(cls, options: TuneOptions, tasks: TaskSet) -> Parts:
        """Divide `tasks`.

        Raises
        ------
        ValueError
            If it is too small: a task can't be divided, or not even the best could be confirmed.
        """
        parts = cls(*divide(tasks.questions, options.confirm, options.seed))
        fewest = min(len(images_of(part)) for part in (parts.search, parts.confirmation))
        if fewest < FEWEST:
            raise ValueError(
                f"--confirm {options.confirm:g} leaves a part of {fewest} images; the search and the confirmation need "
                f"at least {FEWEST} each: raise --limit"
            )
        bound, images, loss = perfect_bound(parts.confirmation, options.confidence)
        if options.target < 1 and bound <= options.target:
            needed = math.log(1 - options.confidence) / math.log(max(1e-9, 1 - (1 - options.target) / loss))
            raise ValueError(
                f"--target {options.target:g} can't be confirmed on {images} held-out images: the bound of a method "
                f"that changes no answer is {100 * bound:.1f}%; it takes {math.floor(needed) + 1} at least, so raise "
                "--limit or lower --target"
            )
        return parts

    def rungs(self, settings: int, options: TuneOptions) -> list[list[Question]]:
        """The questions of each rung."""
        return rungs_of(self.search, settings, FINALISTS, options.eta, options.target, options.seed)

    def later(self, rungs: Sequence[Sequence[Question]], settings: int, eta: float) -> list[int]:
        """Answers that are expected to follow each rung and the confirmation."""
        stages, done = [], 0
        for rung in rungs:
            stages.append((settings + 1) * (len(rung) - done))
            settings, done = min(settings, quota(settings, eta)), len(rung)
        stages.append((min(settings, FINALISTS) + 1) * len(self.confirmation))
        return [sum(stages[i + 1 :]) for i in range(len(stages))]

    def stated(self, options: TuneOptions, tasks: TaskSet) -> str:
        """One line about them."""
        return (
            f"{tasks.name} {tasks.version}, {len(tasks.tasks)} tasks: searched on {len(images_of(self.search))} images "
            f"({len(self.search)} questions), confirmed on {len(images_of(self.confirmation))} others "
            f"({len(self.confirmation)} questions); split by a hash, seed {options.seed}"
        )

    def to_json(self) -> dict[str, Any]:
        """Which images are in either."""
        return {
            name: {"questions": len(part), "images": images_of(part)}
            for name, part in (("search", self.search), ("confirmation", self.confirmation))
        }
