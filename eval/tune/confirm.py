"""The decision, on images that the search has not seen.

The finalists are tested one after the other in an order that the search has fixed, from the safest to the cheapest, as
long as each passes; the last one that passed is the answer. A test passes when the lower bound of the share is above
the target. Such a fixed sequence needs no correction for several tests (Maurer, Hothorn and Lehmacher, 1995): to
return a setting below the target, the first such one of the sequence has to pass its own test, which happens with
probability ``1 - confidence`` at most. Testing the cheapest first and stopping at the first success would add up the
errors of all tests; Holm's correction would be right too, but charges every test for the others. Choosing candidates on
one part and testing them in sequence on another is "Learn then Test" (Angelopoulos et al., arXiv 2110.01052) with the
order of "Pareto testing" (Laufer-Goldshtein et al., arXiv 2210.07913).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vtc.eval.statistics.power import POWER, discordant_rate, needed_sample
from vtc.eval.tasks.questions import Question

from .accuracy_share import Paired
from .successive_halving import Answered, Standing

CONFIRMED, FAILED, NOT_REACHED = "confirmed", "not confirmed", "not tested: one before it failed"


@dataclass
class Trialled:
    """A finalist on the confirmation images: ``low`` is the lower bound of its share, ``cost`` that of the search."""

    spec: str
    share: float
    low: float
    cost: float
    verdict: str
    searched: Standing
    needed: int | None = None


def sequence(standings: Sequence[Standing]) -> list[Standing]:
    """The order of the tests: from the safest to the cheapest; who is not cheaper than a safer one is left out."""
    chain: list[Standing] = []
    for s in sorted(standings, key=lambda s: (-s.chance, -s.share, s.cost)):
        if not chain or s.cost < chain[-1].cost:
            chain.append(s)
    return chain


def confirm(
    chain: Sequence[Standing],
    questions: Sequence[Question],
    plain: Mapping[str, float],
    answered: Mapping[str, Answered],
    target: float,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Trialled]:
    """Test the finalists in the order given.

    Parameters
    ----------
    chain : sequence of Standing
        As ``sequence`` gives it; their largest losses count as seen.
    questions : sequence of Question
        Of the confirmation part.
    plain, answered : mapping
        Scores of the unpruned model, and of the finalists.
    """
    paired = Paired(questions, plain)
    runs = [answered[s.spec].scores for s in chain]
    bounds = paired.bounds(runs, confidence, [s.worst for s in chain], seed)
    found: list[Trialled] = []
    going = True
    for s, scores, low in zip(chain, runs, bounds.tolist(), strict=True):
        share, passed = paired.share(scores), low > target
        verdict = NOT_REACHED if not going else CONFIRMED if passed else FAILED
        needed = None if passed else needed_images(questions, plain, scores, target, confidence)
        found.append(Trialled(s.spec, share, low, s.cost, verdict, s, needed))
        going = going and passed
    return found


def winner(found: Sequence[Trialled]) -> Trialled | None:
    """The last one that was confirmed."""
    return next((t for t in reversed(found) if t.verdict == CONFIRMED), None)


def needed_images(
    questions: Sequence[Question],
    plain: Mapping[str, float],
    scores: Mapping[str, float],
    target: float,
    confidence: float = 0.95,
    power: float = POWER,
) -> int | None:
    """Images that would probably confirm a setting if its share is what it seems to be; None where that is too low."""
    images, tasks = [q.image_id for q in questions], [q.task for q in questions]
    gaps = np.array([scores[q.question_id] - target * plain[q.question_id] for q in questions])
    margin = float(np.mean([gaps[[t == task for t in tasks]].mean() for task in dict.fromkeys(tasks)]))
    if margin <= 0:
        return None
    rate = discordant_rate(gaps, images, tasks)
    return round(needed_sample(rate, min(1.0, margin), 2 * (1 - confidence), power) * len(set(images)) / len(images))
