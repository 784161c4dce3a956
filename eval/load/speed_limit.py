"""How much faster a pruned prefill can be at best."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """What bounds the speed of a pruned prefill.

    Attributes
    ----------
    tower_share : float
        v, the part of the unpruned prefill's time that tower and projector take.
    selection_share : float
        s, the time of choosing tokens over that of the unpruned prefill.
    decoder_flops_ratio : float
        f, the decoder's FLOPs pruned over unpruned.
    tower_flops_ratio : float
        t, the same of the tower: below 1 where a method prunes inside it.
    """

    tower_share: float
    selection_share: float
    decoder_flops_ratio: float
    tower_flops_ratio: float = 1.0

    def __post_init__(self) -> None:
        v, s, f = self.tower_share, self.selection_share, self.decoder_flops_ratio
        if not (0 <= v <= 1 and 0 <= s < math.inf and 0 < f <= 1):
            raise ValueError(f"limit v={v:g}, s={s:g}, f={f:g} is out of range: v in [0, 1], s >= 0, f in (0, 1]")

    @property
    def speed_up(self) -> float:
        """``1 / (v t + s + (1 - v) f)``."""
        v, s, f = self.tower_share, self.selection_share, self.decoder_flops_ratio
        return 1 / (v * self.tower_flops_ratio + s + (1 - v) * f)

    @property
    def words(self) -> str:
        """The three numbers."""
        return f"v={self.tower_share:.3g}, s={self.selection_share:.2g}, f={self.decoder_flops_ratio:.3g}"
