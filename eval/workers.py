"""One process per core: a small model on the CPU gains far more from that than from threads inside its operations."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from .loading import load_model
from .runner import IMAGES_PER_CHUNK, Sweep, run_sweep
from .store import Key, ResultStore

SMALL = 200_000_000  # parameters; larger models are not held more than once
MOST = 8


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def useful_workers(sweep: Sweep, asked: int | None) -> int:
    """How many processes to use: as asked, else one per core for a small model on the CPU, never more than chunks."""
    chunks = -(-len(sweep.tasks.groups()) // IMAGES_PER_CHUNK)
    if asked is None:
        first = next(sweep.model.parameters())
        small = sum(p.numel() for p in sweep.model.parameters()) <= SMALL
        asked = min(cores(), MOST) if first.device.type == "cpu" and small else 1
    return max(1, min(asked, chunks))


class _Remote:
    """What a worker sees of the results: which are done, and where new ones go."""

    def __init__(self, done: frozenset[Key], out: Any, parent: int):
        self.done, self.out, self.parent = done, out, parent

    def __contains__(self, key: Key) -> bool:
        return key in self.done

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Send rows to the writer."""
        if os.getppid() != self.parent:  # killed: nobody reads any more
            os._exit(1)
        self.out.put(list(rows))


@dataclass(frozen=True)
class _Job:
    """A worker's share, as it travels."""

    sweep: Sweep
    source: tuple[str | None, str, str]
    threads: int
    done: frozenset[Key]
    parent: int


def _work(job: _Job, out: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    try:
        import torch

        torch.set_num_threads(job.threads)
        sweep = replace(job.sweep, loaded=load_model(*job.source))
        run_sweep(sweep, _Remote(job.done, out, job.parent))
        out.put(None)
    except (ValueError, TypeError, NotImplementedError, OSError) as error:
        out.put(error)


def run_workers(
    sweep: Sweep,
    store: ResultStore,
    workers: int,
    source: tuple[str | None, str, str],
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Compute what `store` lacks with several processes; this one writes.

    Parameters
    ----------
    sweep, store, advance
        As for ``run_sweep``.
    workers : int
        How many, at least 2.
    source : tuple
        Arguments of ``load_model``, with which every worker loads its own copy.
    """
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    wanted = {(cell.spec, q.question_id) for cell in sweep.cells for q in sweep.tasks.questions}
    done = frozenset(wanted & store.rows.keys())
    advance(len(done))
    groups, images = sweep.tasks.groups(), sweep.tasks.images
    processes = []
    for i in range(workers):
        # small chunks dealt in turn: all workers end at about the same time
        share = [q for j, group in enumerate(groups) if j % workers == i for q in group]
        mine = {q.image_id: images[q.image_id] for q in share}
        tasks = replace(sweep.tasks, questions=tuple(share), images=mine)
        lent: Any = None  # every worker loads the model itself
        part = replace(sweep, loaded=lent, tasks=tasks)
        job = _Job(part, source, max(1, cores() // workers), done, os.getpid())
        processes.append(context.Process(target=_work, args=(job, out), daemon=True))
    try:
        for process in processes:
            process.start()
        left = workers
        while left:
            try:
                found = out.get(timeout=5)
            except queue.Empty:
                dead = [p.exitcode for p in processes if p.exitcode not in (None, 0)]
                if dead:
                    message = f"a worker process died (exit code {dead[0]}); --workers 1 needs less memory"
                    raise ValueError(message) from None
                continue
            if isinstance(found, BaseException):
                raise found
            if found is None:
                left -= 1
                continue
            store.append(found)
            advance(len(found))
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            if process.pid is not None:
                process.join(timeout=10)
