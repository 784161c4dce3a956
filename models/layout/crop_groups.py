"""Which spans are crops of one picture, for families that feed the thumbnail and each crop as a span of its own.

The models are not told: it is read off the prompt (as the processors write it) and, for InternVL, off the pixels. Asked
for only by methods with ``joins_crops``, because it may read the device. What can't be told stays a picture of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from torch import Tensor

from .crops_by_family import Crops, Picture, Sample
from .spans import Batch


def find_pictures(batch: Batch, ids: Tensor | None, find: Callable[[Sample], list[Crops]]) -> list[Picture]:
    """The pictures that `find` sees among the image spans of `batch`, where their spans are grids of one shape."""
    starts = batch.columns[:, 0].tolist()
    rows = None if ids is None else ids.tolist()
    order = [i for i, span in enumerate(batch.spans) if span.modality == "image"]
    layouts, small = batch.layouts(), _small_of(batch)
    found = []
    for row in sorted({batch.spans[i].sample for i in order}):
        spans = sorted((i for i in order if batch.spans[i].sample == row), key=lambda i: starts[i])
        ends = [starts[i] + batch.lengths[i] for i in spans]
        sample = Sample(spans, [starts[i] for i in spans], ends, None if rows is None else rows[row], small)
        for crops, (down, across) in find(sample):
            grids = [layouts[i].grids for i in crops]
            if len(set(grids)) == 1 == len(grids[0]) and grids[0][0].newline == "none":
                found.append(Picture.of(crops, grids[0][0], down, across))
    return found


def _small_of(batch: Batch) -> Callable[[Sequence[int]], Tensor | None]:
    """`Sample.small` of a batch; the pixels are looked at on first use."""

    @lru_cache(maxsize=1)
    def every() -> Tensor | None:
        record = batch.fed["image"].record
        small = record.small()
        return small.cpu() if small is not None and len(small) == len(record.lengths) else None

    def some(spans: Sequence[int]) -> Tensor | None:
        small = every()
        return None if small is None else small[[batch.spans[i].item for i in spans]]

    return some
