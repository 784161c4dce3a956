"""Which questions are searched on and which are kept for the confirmation: no image is in both, every task is."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from vtc.eval.tasks.questions import Question

MIN_IMAGES = 6  # of a first rung
LOSSES = 2  # that a setting just at the target shows in a first rung, if losses are spread evenly


def units_of(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions that share an image, or are scored as a group: they stay together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    number: dict[tuple[str, ...], int] = {}
    edges = []
    for i, q in enumerate(questions):
        keys: list[tuple[str, ...]] = [("image", image) for image in {q.image_id, *q.media}]
        keys += [("group", q.task, q.group)] if q.group else []
        edges += [(i, len(questions) + number.setdefault(key, len(number))) for key in keys]
    rows, columns = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    size = len(questions) + len(number)
    _, label = connected_components(coo_array((np.ones(len(rows)), (rows, columns)), shape=(size, size)), False)
    found: dict[int, list[Question]] = {}
    for i, q in enumerate(questions):
        found.setdefault(int(label[i]), []).append(q)
    return list(found.values())


def divide(questions: Sequence[Question], share: float, seed: int = 0) -> tuple[list[Question], list[Question]]:
    """Split into the larger part and one with about `share` of the images of every task.

    Iterative stratification (Sechidis et al., 2011): the images of the rarest task are dealt first, each to the part
    that lacks this task most, in the order of a hash of `seed` and the image.

    Parameters
    ----------
    questions : sequence of Question
        What to split; the parts keep their order.
    share : float
        Of the second part, in (0, 1).

    Raises
    ------
    ValueError
        If some task can't be in both parts.
    """
    units = sorted(units_of(questions), key=lambda u: hashlib.sha256(f"{seed} {u[0].image_id}".encode()).digest())
    tasks_of = [frozenset(q.task for q in unit) for unit in units]
    count = Counter(task for tasks in tasks_of for task in tasks)
    lacking = [{t: max(1.0, part * n) for t, n in count.items()} for part in (1 - share, share)]
    open_places = [part * len(units) for part in (1 - share, share)]
    side_of: dict[int, int] = {}
    while len(side_of) < len(units):
        left = Counter(t for i, tasks in enumerate(tasks_of) if i not in side_of for t in tasks)
        rarest = min(left, key=lambda t: (left[t], t))
        for i, tasks in enumerate(tasks_of):
            if i in side_of or rarest not in tasks:
                continue
            side = max((0, 1), key=lambda s: (lacking[s][rarest], open_places[s], -s))
            side_of[i] = side
            open_places[side] -= 1
            for task in tasks:
                lacking[side][task] -= 1
    second = {q.question_id for i, side in side_of.items() if side for q in units[i]}
    parts = [q for q in questions if q.question_id not in second], [q for q in questions if q.question_id in second]
    for task, n in count.items():
        if any(all(q.task != task for q in part) for part in parts):
            raise ValueError(
                f"task {task!r} is about {n} image{'s' * (n > 1)} that can't be divided: it needs some to search on "
                "and others to confirm with; raise --limit or leave the task out"
            )
    return parts


def rungs_of(
    questions: Sequence[Question], candidates: int, finalists: int, eta: float, target: float, seed: int = 0
) -> list[list[Question]]:
    """Nested parts of `questions`, each ``eta`` times the one before, the last is all of them.

    As many as it takes to go from `candidates` to `finalists`, but the first has to have `MIN_IMAGES` images and enough
    questions to tell a setting that is just at the target from a perfect one.
    """
    rungs = [list(questions)]
    alive = float(candidates)
    while alive > finalists * eta:
        try:
            _, part = divide(rungs[0], 1 / eta, seed)
        except ValueError:
            break
        if len(part) == len(rungs[0]) or len(units_of(part)) < MIN_IMAGES or len(part) * (1 - target) < LOSSES:
            break
        rungs.insert(0, part)
        alive /= eta
    return rungs
