"""How a sweep's questions are dealt out: into chunks of images, over processes, into batches."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TypeVar

from vtc.eval.tasks.questions import Question
from vtc.eval.vlm.prompts import Row

IMAGES_PER_CHUNK, CHUNKS, BATCHES = 16, 20, 6  # at most, about, at least
T = TypeVar("T")


def deal(groups: Sequence[list[Question]], batch_size: int) -> list[list[list[Question]]]:
    """The questions of a few images each: many chunks, each like the whole, but no smaller than some batches.

    The first is smaller, so that every cell has soon been timed.
    """
    questions = max(1, sum(map(len, groups)))
    per_batch = batch_size * len(groups) / questions  # images
    size = min(IMAGES_PER_CHUNK, max(math.ceil(BATCHES * per_batch), len(groups) // CHUNKS, 1))
    dealt = sorted(groups, key=len, reverse=True)  # images with many questions and with few in every chunk
    middle, few = len(dealt) // 2, max(1, min(int(per_batch), size, len(dealt) // CHUNKS))
    first, rest = dealt[middle : middle + few], dealt[:middle] + dealt[middle + few :]
    count = -(-len(rest) // size)
    return [first, *(rest[i::count] for i in range(count))] if groups else []


def turns(count: int, number: int) -> list[int]:
    """Order in which process `number` visits `count` chunks.

    The first, small one comes first for all, who share its cells; then they start far from each other, however many
    they are.
    """
    start, step = 0.0, 0.5
    while number:
        start += step * (number & 1)
        number, step = number >> 1, step / 2
    first = 1 + int(start * (count - 1))
    return [0, *range(first, count), *range(1, first)] if count else []


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`items` in order, `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def packs(groups: Sequence[list[Row]], size: int) -> Iterator[Sequence[list[Row]]]:
    """Images with equally long prefixes, up to `size`: as many prefills at once as a batch has questions."""
    by_prefix: dict[int, list[list[Row]]] = defaultdict(list)
    for group in groups:
        by_prefix[group[0].prefix].append(group)
    for same in by_prefix.values():
        yield from batches(same, size)
