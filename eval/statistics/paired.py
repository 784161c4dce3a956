"""Paired comparisons of a sweep's cells: with the unpruned model, and with random at the same budget."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .intervals import Floats, Interval, Resamples, percentile
from .power import MARGIN, detectable_difference, discordant_rate, needed_sample
from .significance import exchange_test, mcnemar

Scores = Mapping[str, float]
CHANGE = 1e-9


@dataclass(frozen=True)
class Comparison:
    """A paired comparison over `n` questions.

    ``p_value`` is of ``exchange_test``; ``detectable`` and ``needed`` are of one comparison alone, not corrected for
    the others of a table.
    """

    n: int
    difference: Interval
    p_value: float
    detectable: float
    needed: int


class Questions:
    """Image and task of a sweep's questions, and one draw of images for each set of them that was answered."""

    def __init__(
        self, image_of: Mapping[str, Hashable], task_of: Mapping[str, Hashable], reps: int = 2000, seed: int = 0
    ):
        self.image_of, self.task_of, self.reps, self.seed = image_of, task_of, reps, seed
        self._drawn: dict[tuple[str, ...], Resamples] = {}

    def common(self, *answered: Scores) -> tuple[str, ...]:
        """Questions that all have answered."""
        return tuple(sorted(set(answered[0]).intersection(*answered[1:])))

    def images(self, ids: Sequence[str]) -> list[Hashable]:
        """The image of each question."""
        return [self.image_of[q] for q in ids]

    def tasks(self, ids: Sequence[str]) -> list[Hashable]:
        """The task of each question."""
        return [self.task_of[q] for q in ids]

    def draw(self, ids: tuple[str, ...]) -> Resamples:
        """The resamples of these questions, made once."""
        if ids not in self._drawn:
            self._drawn[ids] = Resamples(self.images(ids), self.tasks(ids), reps=self.reps, seed=self.seed)
        return self._drawn[ids]

    def interval(self, scores: Scores, reference: Scores | None = None) -> Interval:
        """Mean of `scores`, or of the paired differences to `reference`, with its interval."""
        ids = self.common(scores, reference) if reference is not None else tuple(sorted(scores))
        return self.draw(ids).interval([scores[q] - (reference[q] if reference is not None else 0.0) for q in ids])

    def compare(
        self, treated: Sequence[Scores], reference: Sequence[Scores], margin: float = MARGIN
    ) -> Comparison | None:
        """Compare the means of two methods' seeds; None where no question has all their answers.

        With two seeds or more the interval holds their luck too: images and seeds are drawn, independently.

        Parameters
        ----------
        treated, reference : sequence of mappings
            Scores of each question, one mapping per seed.
        margin : float
            The difference that ``needed`` is about.
        """
        ids = self.common(*treated, *reference)
        if not ids:
            return None
        drawn = self.draw(ids)
        ours, theirs = (np.array([[run[q] for q in ids] for run in runs]) for runs in (treated, reference))
        rng = np.random.default_rng((self.seed, 1))  # not the stream that draws the images
        gaps = ours.mean(axis=0) - theirs.mean(axis=0)
        rate = discordant_rate(gaps, self.images(ids), self.tasks(ids))
        return Comparison(
            n=len(ids),
            difference=percentile(drawn.value(gaps), _over_seeds(drawn, ours, rng) - _over_seeds(drawn, theirs, rng)),
            p_value=exchange_test(
                np.concatenate([ours, theirs]), self.images(ids), self.tasks(ids), treated=len(ours), seed=self.seed
            ),
            detectable=detectable_difference(rate, len(ids)),
            needed=needed_sample(rate, margin),
        )


def _over_seeds(drawn: Resamples, runs: Floats, rng: np.random.Generator) -> Floats:
    """Replicates of the mean of `runs`, themselves drawn with replacement.

    Stretched about the mean, or the spread of so few seeds would come out ``(n - 1) / n`` of what it is (Rao and Wu,
    1988).
    """
    n = len(runs)
    share = rng.multinomial(n, np.full(n, 1 / n), size=drawn.reps) / n
    share = 1 / n + (share - 1 / n) * np.sqrt(n / max(1, n - 1))
    return np.sum([share[:, i] * drawn.means(run) for i, run in enumerate(runs)], axis=0)


def flips(treated: Scores, reference: Scores) -> tuple[int, int]:
    """Questions whose score fell (right -> wrong) and rose (wrong -> right) against the reference."""
    gaps = [treated[q] - reference[q] for q in treated.keys() & reference.keys()]
    return sum(gap < -CHANGE for gap in gaps), sum(gap > CHANGE for gap in gaps)


def mcnemar_of(treated: Scores, reference: Scores) -> float:
    """Exact McNemar test of 0/1 scores; of graded ones the sign test, whether they fall as often as they rise."""
    return mcnemar(*flips(treated, reference))
