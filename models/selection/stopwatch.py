"""The time that choosing takes."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor, cuda

Timing = bool | Callable[[], float]  # whether to measure; a function that gives seconds is read instead of the wall's


def now(x: Tensor, timing: Timing) -> float:
    """Seconds, once the device of `x` has done its work."""
    if x.is_cuda:
        cuda.synchronize(x.device)
    return timing() if callable(timing) else time.perf_counter()
