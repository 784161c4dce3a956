"""The size at which a picture has so many tokens, found by asking."""

from __future__ import annotations

from collections.abc import Callable

STEPS = 8


def share_with(full: int, target: int, tokens_at: Callable[[float], int | None]) -> float | None:
    """The share of a picture's sides at which it has at most `target` of its `full` tokens.

    Parameters
    ----------
    full, target : int
        Tokens of the whole picture, and how many it may have.
    tokens_at : callable
        Tokens at a share of the sides; None where the processor refuses so small a picture.

    Returns
    -------
    float or None
        The largest such share that was found; where none has so few, the one with fewest; None where all have `full`.
    """
    floor, high = 0.0, 1.0
    share = (target / full) ** 0.5
    best, fewest = None, (full, 1.0)
    for _ in range(STEPS):
        found = tokens_at(share)
        if found is None or found <= target:
            floor, best = share, best if found is None else share
        else:
            high, fewest = share, min(fewest, (found, share))
            if found == full and share < 0.2:  # it does not depend on the size
                break
        share = (floor + high) / 2 if floor else high * 0.7
    if best is None and fewest[0] < full:
        return fewest[1]
    return best
