"""Several processes on one output folder: one per core for a small model on the CPU, or those of a launcher.

Each writes a results file of its own and takes what no other has claimed, so none waits for another, a process that
dies loses nothing but the batch it was at, and the others do its part.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from .claims import Claims
from .loading import load_model
from .progress import Estimator
from .runner import ENCODING, Advance, Sweep, _nothing, run_sweep
from .store import AnswerStore, ResultStore

SMALL = 200_000_000  # parameters; larger models are not held more than once
MOST = 8
POLL = 0.2


@dataclass(frozen=True)
class Rank:
    """This process among those that ``torchrun`` or ``accelerate launch`` started."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> Rank:
        """Read RANK, WORLD_SIZE and LOCAL_RANK; a process alone where they are not said."""
        values = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        if not values["RANK"] or not values["WORLD_SIZE"]:
            return cls()
        for name, value in values.items():
            if value and not value.isdecimal():
                raise ValueError(f"{name}={value!r} in the environment is no number")
        rank, world = int(values["RANK"]), int(values["WORLD_SIZE"])
        if rank >= world:
            raise ValueError(f"RANK={rank} in the environment is out of range: WORLD_SIZE is {world}")
        return cls(rank, world, int(values["LOCAL_RANK"] or rank))

    def device(self, device: str) -> str:
        """The device of this process: of several GPUs each takes its own."""
        import torch

        if self.world > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local % torch.cuda.device_count()}"
        return device


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def useful_workers(sweep: Sweep, asked: int | None) -> int:
    """How many processes to use: as asked, else one per core for a small model on the CPU, never more than chunks."""
    if asked is None:
        first = next(sweep.model.parameters())
        small = sum(p.numel() for p in sweep.model.parameters()) <= SMALL
        asked = min(cores(), MOST) if first.device.type == "cpu" and small else 1
    return max(1, min(asked, len(sweep.chunks())))


@dataclass(frozen=True)
class _Job:
    """What a worker needs, as it travels."""

    sweep: Sweep
    source: tuple[str | None, str, str]
    threads: int
    path: Path
    config: str
    parent: int


def _work(job: _Job, out: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    try:
        import torch

        torch.set_num_threads(job.threads)
        sweep = replace(job.sweep, loaded=load_model(*job.source), parent=job.parent)
        with AnswerStore(job.path, job.config) as store, Claims(job.path.parent) as claims:
            store.open()
            run_sweep(sweep, store, claims=claims, wait=False)
    except (ValueError, TypeError, NotImplementedError, OSError) as error:
        out.put(error)


def run_workers(
    sweep: Sweep,
    store: ResultStore,
    workers: int,
    source: tuple[str | None, str, str],
    advance: Advance = _nothing,
) -> None:
    """Compute what `store` lacks with several processes; this one watches.

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
    for cell, _ in wanted & store.rows.keys():
        advance(cell, 1, True)
    lent: Any = None  # every worker loads the model itself
    part = replace(sweep, loaded=lent, tasks=sweep.tasks.part(sweep.tasks.questions))
    job = _Job(part, source, max(1, cores() // workers), store.path, store.config, os.getpid())
    processes = [context.Process(target=_work, args=(job, out), daemon=True) for _ in range(workers)]
    try:
        for process in processes:
            process.start()
        running, begun = True, False
        while running:
            running = any(p.is_alive() for p in processes)
            new = [row["cell"] for row in store.refresh() if (row["cell"], row["question_id"]) in wanted]
            for cell in new:
                advance(cell, 1, not begun)  # the time until the first ones was for loading
            begun = begun or bool(new)
            if not out.empty():
                raise out.get()
            dead = [p.exitcode for p in processes if p.exitcode not in (None, 0)]
            if dead:
                raise ValueError(f"a worker process died (exit code {dead[0]}); --workers 1 needs less memory")
            time.sleep(POLL if running else 0)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            if process.pid is not None:
                process.join(timeout=10)
        Claims(store.path.parent).tidy()


def compute(
    sweep: Sweep, store: ResultStore, workers: int, source: tuple[str | None, str, str], progress: Progress,
    estimator: Estimator, what: str = "answering", wait: bool = True,
) -> None:  # fmt: skip
    """Compute what `store` lacks, under a bar called `what`, here or with several processes.

    Parameters
    ----------
    sweep, store, workers, source
        As for ``run_workers``; 1 worker is this process.
    estimator : Estimator
        For the time left; it knows the parts.
    wait : bool
        As for ``run_sweep``.
    """
    bar = progress.add_task(what, total=sweep.total(), estimator=estimator)

    def advance(cell: str, count: int, found: bool) -> None:
        (estimator.found if found else estimator.done)(cell, count)
        progress.advance(bar, 0 if cell == ENCODING else count)

    if workers > 1:
        run_workers(sweep, store, workers, source, advance)
        return
    with Claims(store.path.parent) as claims:
        store.open()
        run_sweep(sweep, store, advance, claims, wait)
