"""Several processes on one output folder: one per core for a small model on the CPU, or those of a launcher.

Each writes a results file of its own and takes what no other has claimed, so none waits for another, a process that
dies loses nothing but the batch it was at, and the others do its part.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from vtc.eval.terminal.progress_bars_and_eta import Estimator, Visits
from vtc.eval.vlm.loading import load_model
from vtc.pruners.plugins import failed_at
from vtc.pruners.registry import import_methods, imported

from .locks import Claims
from .results_store import AnswerStore, ResultStore
from .sweep_run import ENCODING, Advance, Sweep, _nothing, run_sweep

SMALL = 200_000_000  # parameters; larger models are not held more than once
MOST = 8
POLL = 0.2
EXPECTED = (NotImplementedError, ValueError, TypeError, OSError)  # errors whose words are for the user


class WorkerFailed(RuntimeError):
    """A worker ended early; the message says why in the worker's own words."""

    def noted(self, where: str) -> WorkerFailed:
        """This, with the worker's traceback below its own."""
        self.__cause__ = RuntimeError(f"in a worker process:\n{where}")
        return self


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
    imports: tuple[str, ...]


@dataclass(frozen=True)
class _Failure:
    """What a worker ended with, in plain values: an exception itself may not survive the journey."""

    kind: str
    message: str
    code: int | None
    where: str

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        code = error.errno if isinstance(error, OSError) else None
        kind = next((k.__name__ for k in EXPECTED if isinstance(error, k)), type(error).__name__)
        words = str(error) if code is None else os.strerror(code)
        return cls(kind, f"{words}{failed_at(error)}", code, traceback.format_exc())

    def error(self) -> Exception:
        """The exception as the job's own process would have seen it, or a ``WorkerFailed`` in its words."""
        for kind in EXPECTED:
            if kind.__name__ == self.kind:
                return kind(self.message) if self.code is None else OSError(self.code, self.message)
        return WorkerFailed(f"{self.kind}: {self.message}").noted(self.where)


def _work(job: _Job, out: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    warnings.simplefilter("ignore")  # the parent warns of the same
    try:
        import torch

        torch.set_num_threads(job.threads)
        for source in job.imports:
            import_methods(source)
        sweep = replace(job.sweep, loaded=load_model(*job.source), parent=job.parent)
        visits = Visits(lambda *visit: out.put(visit))

        def advance(cell: str, count: int, found: bool) -> None:
            if found:
                visits.skip()
            elif cell != ENCODING:  # it is part of the answers that it is for
                visits.done(cell, count)

        with AnswerStore(job.path, job.config) as store, Claims(job.path.parent) as claims:
            store.open()
            visits.skip()  # loading was no work on an answer
            run_sweep(sweep, store, advance, claims, wait=False)
            visits.close()
    except Exception as error:  # whatever it is, it is told once, by the parent
        out.put(_Failure.of(error))


def ended(code: int) -> str:
    """How a worker ended that could not say it itself."""
    if code > 0:
        return f"a worker process ended with exit code {code}; --workers 1 does the work in this process"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"a worker process was killed by {name}; if memory ran out, --workers 1 needs less"


def run_workers(
    sweep: Sweep,
    store: ResultStore,
    workers: int,
    source: tuple[str | None, str, str],
    advance: Advance = _nothing,
    took: Callable[[str, int, float], None] = lambda cell, count, seconds: None,
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
    took : callable
        Called with a cell, a number of its answers and the seconds that they took their worker.
    """
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    wanted = {(cell.spec, q.question_id) for cell in sweep.cells for q in sweep.tasks.questions}
    for cell, _ in wanted & store.rows.keys():
        advance(cell, 1, True)
    lent: Any = None  # every worker loads the model itself
    part = replace(sweep, loaded=lent, tasks=sweep.tasks.part(sweep.tasks.questions))
    job = _Job(part, source, max(1, cores() // workers), store.path, store.config, os.getpid(), tuple(imported()))
    processes = [context.Process(target=_work, args=(job, out), daemon=True) for _ in range(workers)]
    try:
        for process in processes:
            process.start()
        running = True
        while running:
            running = any(p.is_alive() for p in processes)
            while not out.empty():
                told = out.get()
                if isinstance(told, _Failure):
                    raise told.error()
                took(*told)
            for row in store.refresh():
                if (row["cell"], row["question_id"]) in wanted:
                    advance(row["cell"], 1, True)
            for code in (p.exitcode for p in processes if p.exitcode):
                raise WorkerFailed(ended(code))
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
    sweep: Sweep,
    store: ResultStore,
    workers: int,
    source: tuple[str | None, str, str],
    progress: Progress,
    estimator: Estimator,
    what: str = "answering",
    wait: bool = True,
) -> None:
    """Compute what `store` lacks, under a bar called `what`, here or with several processes.

    Parameters
    ----------
    sweep, store, workers, source
        As for ``run_workers``; 1 worker is this process.
    estimator : Estimator
        For the time left; it knows the parts, and is told by how many processes they are done.
    wait : bool
        As for ``run_sweep``.
    """
    bar = progress.add_task(what, total=sweep.total(), estimator=estimator)

    def advance(cell: str, count: int, found: bool) -> None:
        (estimator.found if found else estimator.done)(cell, count)
        progress.advance(bar, 0 if cell == ENCODING else count)

    estimator.processes = workers
    if workers > 1:
        run_workers(sweep, store, workers, source, advance, estimator.took)
        return
    with Claims(store.path.parent) as claims:
        store.open()
        run_sweep(sweep, store, advance, claims, wait)
