"""What time is: of the wall, of the processor, or of a GPU between two events."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Clock:
    """Seconds between marks.

    Attributes
    ----------
    words : str
        What is counted.
    device : torch.device
        Waited for where work on it runs by itself.
    read : callable or None
        Gives seconds; None: marks are CUDA events.
    """

    words: str
    device: torch.device
    read: Callable[[], float] | None = None

    def mark(self) -> Any:
        """This moment; of a GPU's queue, whose work it does not wait for."""
        if self.read is not None:
            return self.read()
        event: Any = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds from one mark to a later one; a GPU has to have come past both (``wait``)."""
        return end - start if self.read is not None else start.elapsed_time(end) / 1e3

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measure(self, call: Callable[[], T]) -> tuple[float, T]:
        """Seconds of a call, the device waited for around it, and what it gave."""
        self.wait()
        start = self.mark()
        result = call()
        if self.read is not None:
            self.wait()
            return self.between(start, self.mark()), result
        end = self.mark()
        self.wait()
        return self.between(start, end), result


def wall_clock(device: torch.device) -> Clock:
    """Time that passes."""
    return Clock("time that passes, the device waited for", device, time.perf_counter)


def work_clock(device: torch.device) -> Clock:
    """CUDA events on a GPU; on a CPU the processor's time, which other programs there hardly change."""
    if device.type == "cuda":
        return Clock("CUDA events", device)
    threads = torch.get_num_threads()
    if threads == 1:
        return Clock("CPU time of one thread", device, time.thread_time)
    return Clock(f"CPU time of the process, its {threads} threads together", device, time.process_time)


def clock(device: torch.device, call: Callable[[], T]) -> tuple[float, T]:
    """Seconds that pass during a call, the device waited for around it, and what it gave."""
    return wall_clock(device).measure(call)
