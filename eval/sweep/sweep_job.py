"""One sweep as a job: what it will do, its answers, its costs; ``vtc bench`` and ``vtc.eval.run_sweep`` run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from vtc.eval.cost.prefill_cost import Cost, LMCost, lm_cost
from vtc.eval.tasks.questions import TaskSet
from vtc.eval.terminal.console import say
from vtc.eval.terminal.progress_bars_and_eta import Estimator
from vtc.eval.vlm.loading import Loaded, config_hash
from vtc.eval.vlm.pruning_settings import Cell

from .asked_questions import a_part
from .cell_costs import expect_timing, sweep_costs
from .fingerprint import configuration, files_read, record
from .options import BenchOptions, check_options
from .plan import Plan, chosen_cells, leave_out, plan_sweep
from .random_baselines import add_baselines
from .results_store import AnswerStore, ResultStore, results_folder
from .second_questions import ask_second, can_ask, pairs_of
from .sweep_run import ENCODING, Sweep, missing
from .worker_processes import Rank, compute, useful_workers


@dataclass
class Job:
    """A sweep that is ready to run.

    Attributes
    ----------
    tasks : TaskSet
        The questions of the whole sweep; those of ``sweep`` may be a part of them.
    plan : Plan
        The settings, and which were left out and why.
    asked : dict
        The settings of a recipe by their labels.
    described : dict
        Everything that an answer depends on besides its setting and question.
    folder : Path
        Where results go.
    """

    options: BenchOptions
    loaded: Loaded
    tasks: TaskSet
    plan: Plan
    asked: dict[str, Cell]
    described: dict[str, Any]
    folder: Path
    sweep: Sweep

    @classmethod
    def of(
        cls,
        options: BenchOptions,
        load: Callable[[], Loaded],
        everything: TaskSet,
        tasks: TaskSet,
        console: Console,
    ) -> Job:
        """Plan the sweep of `tasks`, which are questions of `everything`; short trials on the model tell what can run.

        Raises
        ------
        ValueError, TypeError
            For an option that does not work, and for a method that was asked for by name and can't run.
        """
        part, parts = check_options(options)
        plan, asked = plan_sweep(options)  # what is wrong with the methods is said before a model is loaded
        loaded = load()
        described = {**configuration(options, loaded, everything), **files_read(plan.cells)}
        folder = results_folder(options.output, loaded, everything, config_hash(described))
        plan = leave_out(plan, loaded, tasks)
        if options.random and not {*(options.only or ["all"])} <= {cell.spec for cell in plan.cells}:
            plan = add_baselines(plan, loaded, tasks, options.every_seed)
        plan = chosen_cells(plan, options.only)
        questions = a_part(tasks, part, parts)
        sweep = Sweep.of(options, loaded, questions, plan.cells, _counted(loaded, console), options.shard)
        return cls(options, loaded, tasks, plan, asked, described, folder, sweep)

    def store(self) -> ResultStore:
        """Where the answers are kept; those of an earlier run are there."""
        return AnswerStore(self.folder / "results.jsonl", config_hash(self.described))

    def found(self, store: ResultStore) -> int:
        """How many answers are there."""
        return self.sweep.total() - missing(self.sweep, store)

    def answer(self, store: ResultStore, progress: Progress, rank: Rank | None = None) -> Estimator:
        """Compute what is missing, with as many processes as it is worth; gives what knows how long the rest takes."""
        rank, sweep, options = rank or Rank(), self.sweep, self.options
        workers = 1 if rank.world > 1 else useful_workers(sweep, options.workers)
        parts = {cell.spec: len(sweep.tasks.questions) for cell in sweep.cells}
        if workers == 1:  # of its workers it sees the answers only
            parts[ENCODING] = len(sweep.tasks.groups())
        wait = rank.rank == 0 and not options.partial
        estimator = Estimator(parts)
        if wait:
            expect_timing(sweep, options.timing, estimator, ahead=missing(sweep, store) > 0)
        compute(sweep, store, workers, options.source, progress, estimator, wait=wait)
        return estimator

    def second(self, console: Console, progress: Progress) -> ResultStore | None:
        """Ask second questions; the answers, or None where there are none to ask."""
        if not self.options.second:
            return None
        pairs = pairs_of(self.tasks, self.options.second)
        if why := can_ask(self.sweep, pairs):
            say(console, f"no second questions: {why}")
            return None
        store = AnswerStore(self.folder / "second.jsonl", config_hash(self.described))
        bar = progress.add_task("second questions", total=len(pairs) * len(self.sweep.cells))
        with store:
            ask_second(self.sweep, pairs, store, lambda n: progress.advance(bar, n))
        return store

    def about(self, seconds: float) -> dict[str, Any]:
        """How the sweep was made, for ``summary.json`` and the report."""
        about = record(self.options, self.loaded, self.tasks, self.described, seconds)
        return about | ({"left_out": self.plan.left_out} if self.plan.left_out else {})

    def costs(self, store: ResultStore, progress: Progress, estimator: Estimator) -> dict[str, Cost]:
        """What each line of the table costs, by the spec of its first setting."""
        return sweep_costs(self.sweep, self.options.timing, progress, store, estimator)


def _counted(loaded: Loaded, console: Console) -> LMCost | None:
    try:
        return lm_cost(loaded.model)
    except NotImplementedError as e:
        console.print(f"{e}: no FLOPs columns", style="yellow")
        return None
