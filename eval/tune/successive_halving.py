"""The search: successive halving for the cheapest setting that meets a target, not for the most accurate one.

On every rung all settings that are left answer the same questions, more from rung to rung. What the scores tell is a
sample of possible truths (``Paired.draws``): in each of them some settings meet the target and others don't. After a
rung

1. whatever meets the target in hardly any of them, or saves nothing, is out;
2. of the others 1/eta go on: those that together promise most. A set promises the saving of its best member that meets
   the target, averaged over the truths. It is built one by one, the safest first, then whatever adds most. So of two
   equally safe settings the cheaper one goes on, a cheap and risky one stays as long as its chance is worth a place,
   and near copies of a setting that is in already add nothing.

Monotony in ``keep`` is nowhere assumed. Nothing here has to hold with a given probability: the settings that are left
are confirmed on other images (``confirm``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vtc.eval.statistics.intervals import Floats
from vtc.eval.tasks.questions import Question
from vtc.eval.vlm.pruning_settings import UNPRUNED

from .accuracy_share import BELIEF, Paired

FINALISTS = 4
BELOW, SAVES_NOTHING, OUTBID, ON = "below the target", "saves nothing", "others promise more", "goes on"


@dataclass(frozen=True)
class Answered:
    """Score of each question, and what a setting costs as a ratio to the unpruned model on the same questions."""

    scores: Mapping[str, float]
    cost: float


Trial = Callable[[Sequence[str], Sequence[Question], str], Mapping[str, Answered]]


@dataclass
class Standing:
    """A setting after a rung.

    ``chance`` is the share of the possible truths in which it meets the target, ``worst`` its largest loss on an image.
    """

    spec: str
    share: float
    chance: float
    cost: float
    worst: float
    fate: str = ON

    @property
    def saving(self) -> float:
        """Share of the unpruned model's cost."""
        return max(0.0, 1 - self.cost)


@dataclass
class Rung:
    """One round of the search."""

    questions: int
    images: int
    accuracy: float
    standings: list[Standing] = field(default_factory=list)

    @property
    def alive(self) -> list[Standing]:
        """Those that go on."""
        return [s for s in self.standings if s.fate == ON]


def best_set(meets: NDArray[np.bool_], savings: Sequence[float], size: int) -> list[int]:
    """The settings that together promise most.

    Parameters
    ----------
    meets : array
        `[settings, truths]` whether a setting meets the target.
    savings : sequence of float
        What it saves.
    size : int
        How many to choose.

    Returns
    -------
    list of int
        In the order of choice: the safest (of several the cheapest), then whatever adds most to the mean of the best
        saving, then, where nothing adds any more, by chance times saving.
    """
    saving = np.asarray(savings, dtype=float)
    worth = meets * saving[:, None]
    alone = worth.mean(axis=1)
    left = list(range(len(saving)))
    chosen: list[int] = []
    best: Floats = np.zeros(meets.shape[1])
    while left and len(chosen) < size:
        if not chosen:
            pick = max(left, key=lambda i: (meets[i].mean(), saving[i]))
        else:
            gains = {i: round(float(np.maximum(worth[i], best).mean() - best.mean()), 9) for i in left}
            pick = max(left, key=lambda i: (gains[i], alone[i], saving[i]))
        chosen.append(pick)
        left.remove(pick)
        best = np.maximum(best, worth[pick])
    return chosen


def search(
    specs: Sequence[str],
    rungs: Sequence[Sequence[Question]],
    trial: Trial,
    target: float,
    confidence: float = 0.95,
    eta: float = 2.0,
    finalists: int = FINALISTS,
    seed: int = 0,
    told: Callable[[Rung], None] = lambda rung: None,
) -> list[Rung]:
    """Narrow down `specs` to at most `finalists`.

    Parameters
    ----------
    specs : sequence of str
        Settings, without the unpruned one.
    rungs : sequence
        Nested questions, see ``rungs_of``.
    trial : callable
        Has settings answer questions; its last argument says in words what for.
    told : callable
        Called after each rung.
    """
    left, found = list(specs), []
    for i, questions in enumerate(rungs):
        last = i == len(rungs) - 1
        what = f"rung {i + 1}/{len(rungs)}, {len(left)} settings"
        answered = trial([UNPRUNED.spec, *left], questions, what)
        paired = Paired(questions, answered[UNPRUNED.spec].scores)
        draws = paired.draws([answered[s].scores for s in left], BELIEF, seed=seed + i)
        standings = []
        for spec, drawn in zip(left, draws, strict=True):
            a = answered[spec]
            chance = float((drawn >= target).mean())
            standings.append(Standing(spec, paired.share(a.scores), chance, a.cost, paired.worst(a.scores)))
        _judge(standings, draws >= target, confidence, finalists if last else quota(len(left), eta, finalists))
        found.append(Rung(len(questions), paired.images, float(paired.plain.mean()), standings))
        told(found[-1])
        left = [s.spec for s in found[-1].alive]
        if not left:
            break
    return found


def quota(settings: int, eta: float, finalists: int = FINALISTS) -> int:
    """How many of them go on to the next rung."""
    return max(finalists, math.ceil(settings / eta))


def _judge(standings: Sequence[Standing], meets: NDArray[np.bool_], confidence: float, places: int) -> None:
    able = []
    for i, s in enumerate(standings):
        s.fate = SAVES_NOTHING if s.saving <= 0 else BELOW if s.chance < 1 - confidence else OUTBID
        able += [i] * (s.fate == OUTBID)
    chosen = best_set(meets[able], [standings[i].saving for i in able], places) if able else []
    for i in chosen:
        standings[able[i]].fate = ON
