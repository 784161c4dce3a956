"""What paired scores tell about a setting's share of the unpruned accuracy.

The share is ``mean(pruned) / mean(unpruned)``, each mean taken over the tasks as in the tables. Its uncertainty is that
of the images, drawn anew by Rubin's (1981) Bayesian bootstrap: every image gets a random weight, the same on both sides
of the quotient. A bootstrap can't draw what the sample does not hold, though, and losses are rare exactly where a
setting is good: if one image in 50 is lost, every third sample of 50 shows no loss at all, and its plain lower bound is
100%. So one image that was not seen is drawn along, on which the setting loses as much as on the worst one that was.

With one question per image this is Gaffke's (2005) bound for a bounded mean, for 0/1 scores the one of Clopper and
Pearson, which hold at every sample size. With several per image it takes losses on one image to be correlated by
``ALIKE`` at least, or as much as the images show; it may still be optimistic where whole images are lost so rarely that
neither the search nor the confirmation has seen one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vtc.eval.statistics.intervals import Floats, codes
from vtc.eval.tasks.questions import Question

REPS = 2000
ALIKE = 0.1  # the bundled model's sweep of five methods has 0.00 to 0.04
CHUNK = 1 << 22


@dataclass(frozen=True)
class Unseen:
    """The images that are drawn along beside those of the sample.

    ``lost`` is the Dirichlet parameter of an image that is lost, ``same`` of one that is answered as without pruning.
    """

    lost: float
    same: float


BOUND = Unseen(1.0, 0.0)  # a lower bound that holds
BELIEF = Unseen(0.5, 0.5)  # neither hopeful nor fearful: for 0/1 losses Jeffreys' prior


class Paired:
    """Scores of the same questions with and without pruning, added up per image.

    Parameters
    ----------
    questions : sequence of Question
        All of one part.
    plain : mapping
        Score of each question id by the unpruned model.

    Raises
    ------
    ValueError
        If the unpruned model has no question right.
    """

    def __init__(self, questions: Sequence[Question], plain: Mapping[str, float]):
        self.ids = [q.question_id for q in questions]
        of_task = Counter(q.task for q in questions)
        self._image, self.images = codes([q.image_id for q in questions])
        # so that the mean over the images of these sums is the mean over the tasks of their means
        self._weight = np.array([self.images / (len(of_task) * of_task[q.task]) for q in questions])
        self.plain = self.totals(plain)
        self.least = least_loss(self._weight, self._image)
        if self.plain.sum() <= 0:
            raise ValueError(
                f"the unpruned model answers none of {len(questions)} questions right: there is no accuracy to keep"
            )

    def totals(self, scores: Mapping[str, float]) -> Floats:
        """`[images]` weighted sums of scores."""
        values = np.array([scores[q] for q in self.ids], dtype=float)
        return np.bincount(self._image, values * self._weight, self.images).astype(float)

    def share(self, scores: Mapping[str, float]) -> float:
        """Accuracy over the unpruned model's."""
        return float(self.totals(scores).sum() / self.plain.sum())

    def worst(self, scores: Mapping[str, float]) -> float:
        """The largest loss on one image, not below ``least_loss``."""
        return max(self.least, float((self.plain - self.totals(scores)).max()))

    def draws(
        self, runs: Sequence[Mapping[str, float]], unseen: Unseen, worst: Sequence[float] | None = None, seed: int = 0
    ) -> Floats:
        """`[runs, REPS]` shares with the images reweighted, the same way for all runs.

        Parameters
        ----------
        runs : sequence of mappings
            Scores of each setting.
        unseen : Unseen
            What is drawn beside the images.
        worst : sequence of float, optional
            Losses on one image that are known from elsewhere.
        """
        treated = np.stack([self.totals(run) for run in runs], axis=1)
        lost = np.array([self.worst(run) for run in runs])
        if worst is not None:
            lost = np.maximum(lost, worst)
        rng = np.random.default_rng(seed)
        base, found = float(self.plain.mean()), np.empty((len(runs), REPS))
        step = max(1, CHUNK // max(self.images, len(runs)))
        for start in range(0, REPS, step):
            n = min(step, REPS - start)
            weights = rng.standard_exponential((n, self.images))
            gone = rng.standard_gamma(unseen.lost, (n, len(runs)))  # other images for each setting
            whole = (weights @ self.plain)[:, None] + base * (gone + rng.standard_gamma(unseen.same, (n, 1)))
            # of the unpruned sum all is kept but what the seen and the unseen images lose
            kept = whole - (weights @ (self.plain[:, None] - treated) + gone * lost)
            found[:, start : start + n] = (kept / whole).T
        return found

    def bounds(
        self,
        runs: Sequence[Mapping[str, float]],
        confidence: float,
        worst: Sequence[float] | None = None,
        seed: int = 0,
    ) -> Floats:
        """`[runs]` lower confidence bounds of the shares; `worst` as in ``draws``."""
        return np.quantile(self.draws(runs, BOUND, worst, seed), 1 - confidence, axis=1)


def least_loss(weight: Floats, image: NDArray[np.int64]) -> float:
    """What an image costs that is hit at all: one question, and of the others the share that goes with it."""
    question, whole = float(weight.max()), float(np.bincount(image, weight).max())
    return question + ALIKE * (whole - question)


def perfect_bound(questions: Sequence[Question], confidence: float) -> tuple[float, int, float]:
    """Lower bound for a setting that changes no answer of a model that has all right: nothing can do better.

    Returns
    -------
    bound : float
        On these questions.
    images : int
        On how many images.
    loss : float
        Of an image that is hit, in mean images.
    """
    paired = Paired(questions, dict.fromkeys((q.question_id for q in questions), 1.0))
    unseen = 1 - (1 - confidence) ** (1 / paired.images)  # quantile of the unseen image's share, a Beta(1, images)
    return 1 - unseen * paired.least, paired.images, paired.least
