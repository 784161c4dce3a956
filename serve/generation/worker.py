"""The queue: so many requests are let in, one thread answers them in turn, and one whose client is gone leaves."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vtc.serve.requests.refusal import Refusal

from .engine import Stopped

log = logging.getLogger("vtc.serve")


@dataclass(frozen=True)
class Text:
    """A piece of an answer."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end of an answer, and what the work returned."""

    result: Any


@dataclass(frozen=True)
class Failed:
    """The end of an answer that there is none of."""

    refusal: Refusal


Event = Text | Done | Failed
Work = Callable[["Job"], Any]


class Job:
    """Work of one request; made and cancelled by the event loop, run by the worker's thread.

    Attributes
    ----------
    events : asyncio.Queue
        What happened, in order; the last one is ``Done`` or ``Failed``.
    """

    def __init__(self, request_id: str, work: Work, deadline: float):
        self.request_id, self.deadline = request_id, deadline
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._work, self._loop, self._cancelled = work, asyncio.get_running_loop(), threading.Event()

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._cancelled.set()

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self.deadline

    @property
    def unwanted(self) -> bool:
        """Whether it should end now."""
        return self._cancelled.is_set() or self.late

    def say(self, text: str) -> None:
        """Hand a piece of the answer on."""
        if text:
            self._put(Text(text))

    def _put(self, event: Event) -> None:
        try:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the server has ended meanwhile
            self.cancel()

    def run(self) -> None:
        """Do the work; whatever goes wrong in it ends in a ``Failed``."""
        try:
            if self.unwanted:
                raise Stopped
            self._put(Done(self._work(self)))
        except Refusal as refusal:
            self._put(Failed(refusal))
        except Stopped:
            self._put(Failed(Refusal("the request took longer than this server allows", 504, code="timeout")))
        except Exception:
            log.exception("request %s failed", self.request_id)
            self._put(Failed(Refusal("something went wrong while answering; the server's log says what", 500)))


class Worker:
    """One thread, and who may wait for it.

    Parameters
    ----------
    queue : int
        Requests that may wait beside the one that is answered.
    """

    def __init__(self, queue: int):
        self.capacity = queue + 1
        self.held = 0  # requests that were let in and are not answered
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running: Job | None = None
        self._closed = False
        self._seconds = 1.0  # that a request took, of late
        self._thread = threading.Thread(target=self._work, name="vtc-serve", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def admit(self) -> Slot:
        """Let a request in.

        Raises
        ------
        Refusal
            If too many are in.
        """
        if self._closed:
            raise Refusal("the server is shutting down", 503)
        if self.held >= self.capacity:
            wait = min(60, max(1, math.ceil(self._seconds * self.held)))
            raise Refusal(
                f"{self.held} requests are waiting or being answered, which is all that this server takes: try again "
                f"in {wait} s",
                429,
                code="queue_full",
                headers={"Retry-After": str(wait)},
            )
        return Slot(self)

    def submit(self, job: Job) -> None:
        """Queue a job of a request that was let in."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Take a job out of the queue, or stop it after its next token."""
        job.cancel()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """1 while a job is run."""
        return int(self._running is not None)

    def close(self, seconds: float) -> bool:
        """Stop what runs, forget what waits; whether the thread has ended within `seconds`."""
        with self._changed:
            self._closed = True
            for job in (*self._waiting, *([self._running] if self._running else [])):
                job.cancel()
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                job = self._running = self._waiting.popleft()
            began = time.monotonic()
            job.run()
            self._seconds = 0.8 * self._seconds + 0.2 * (time.monotonic() - began)
            with self._changed:
                self._running = None


class Slot:
    """The place of a request that was let in; released once."""

    def __init__(self, worker: Worker):
        self._worker: Worker | None = worker
        worker.held += 1

    def release(self) -> None:
        """Let another one in."""
        if self._worker is not None:
            self._worker.held -= 1
            self._worker = None
