"""Who has its turn when: every round has each target at each concurrency once, neighbours in time at one of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from .options import LoadOptions

WARM_UP = 0  # the round that is not counted
PER_SLOT = 4  # requests of a block for each one in flight, at least: its ends, where fewer are in flight, are small
WARM = 4  # requests of a warm-up, at least


@dataclass(frozen=True)
class Block:
    """One target's turn at one concurrency; ``round`` 0 warms up."""

    target: str
    concurrency: int
    round: int

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from others."""
        return self.target, self.concurrency, self.round

    def count(self, requests: int) -> int:
        """How many requests it sends."""
        if self.round == WARM_UP:
            return max(WARM, self.concurrency)
        return max(requests, PER_SLOT * self.concurrency)


def schedule(options: LoadOptions) -> list[Block]:
    """All blocks in order, warm-ups first."""
    names = [target.name for target in options.targets]
    found = []
    for turn in range(WARM_UP, options.rounds + 1):
        for concurrency in options.concurrencies:
            order = random.Random(f"{options.seed} {turn} {concurrency}")
            found += [Block(name, concurrency, turn) for name in order.sample(names, len(names))]
    return found


def still_to_do(blocks: Sequence[Block], finished: set[tuple[str, int, int]]) -> list[Block]:
    """Blocks that are not finished, behind the warm-ups that they need: the server may be cold again."""
    left = [b for b in blocks if b.round != WARM_UP and b.key not in finished]
    cold = {(b.target, b.concurrency) for b in left}
    return [b for b in blocks if b.round == WARM_UP and (b.target, b.concurrency) in cold] + left
