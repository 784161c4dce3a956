"""What was chosen of a picture, so that encoding it again can't choose otherwise.

An engine may encode a picture anew while blocks of its tokens still lie in the prefix cache. Kernels of other batch
sizes round otherwise, a near tie flips, and half of a picture's blocks would hold other tokens than the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

LIMIT = 256 * 2**20  # bytes


@dataclass(frozen=True)
class Kept:
    """What is left of an item: ids among all its tokens, ascending `[k]`, and the new vectors `[k, D]` of a merge."""

    ids: Tensor
    vectors: Tensor | None = None

    @property
    def bytes(self) -> int:
        """What it holds."""
        return self.ids.nbytes + (0 if self.vectors is None else self.vectors.nbytes)


class KeptMemory:
    """The newest choices, up to `limit` bytes in main memory."""

    def __init__(self, limit: int = LIMIT):
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Kept | None:
        """What was chosen, which counts as new again."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, kept: Kept) -> None:
        """Remember a choice, and forget the oldest ones beyond the limit."""
        ids, vectors = kept.ids.cpu(), None if kept.vectors is None else kept.vectors.cpu()
        before = self._kept.pop(key, None)
        self.bytes -= 0 if before is None else before.bytes
        self._kept[key] = Kept(ids, vectors)
        self.bytes += self._kept[key].bytes
        while self.bytes > self.limit and len(self._kept) > 1:
            _, old = self._kept.popitem(last=False)
            self.bytes -= old.bytes
