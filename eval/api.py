"""What ``vtc bench`` does, for a script or a notebook: questions, answers, one comparison, tables, a report.

>>> from vtc.eval import load_tasks, paired_difference, report, run_sweep, summarise  # doctest: +SKIP
>>> answers = run_sweep(load_tasks("bundled", limit=20), ["dart", "random(layer=2)"], keep=[0.25])  # doctest: +SKIP
>>> paired_difference(answers, "dart 25%", "random(layer=2) 25%").difference  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from vtc.eval.cost.prefill_cost import Cost
from vtc.eval.files.output_folder import writing_to
from vtc.eval.reports.sweep_folder import write_files
from vtc.eval.statistics.cell_summary import CellSummary, keep_text
from vtc.eval.statistics.paired import Comparison, Questions
from vtc.eval.statistics.pooled_seeds import Line, pool_lines
from vtc.eval.statistics.rows_to_cells import summarise_sweep
from vtc.eval.sweep.asked_questions import LMMS, load_asked
from vtc.eval.sweep.options import REPS, BenchOptions
from vtc.eval.sweep.results_store import ResultStore
from vtc.eval.sweep.sweep_job import Job
from vtc.eval.tasks.questions import TaskSet
from vtc.eval.tasks.reading.unusable_rows import check_media
from vtc.eval.terminal.progress_bars_and_eta import make_progress
from vtc.eval.vlm.loading import Loaded, load_model
from vtc.eval.vlm.pruning_settings import DEFAULT_KEEPS, DEFAULT_PRUNERS

BUNDLED = "bundled"
OPTIONS = (
    "batch_size",
    "cache_bytes",
    "device",
    "dtype",
    "match",
    "max_new_tokens",
    "num_frames",
    "random",
    "seed",
    "second",
    "seeds",
    "share",
    "workers",
)
SAMPLED = 512  # values of each weight that tell one model in memory from another


def load_tasks(
    source: str | Path | Sequence[str] = BUNDLED,
    limit: int | None = None,
    data_dir: str | Path | None = None,
    on_error: str = "stop",
) -> TaskSet:
    """Read an evaluation set, and look at every picture that its questions are about.

    Parameters
    ----------
    source : str, Path or sequence of str
        ``"bundled"``; a folder with ``images.parquet`` and ``questions.parquet`` or with task definitions
        (``*.yaml``); or names of tasks: bundled ones, public benchmarks (``["pope", "gqa"]``), ``lmms:NAME``.
    limit : int, optional
        Questions of each task, a fixed choice; None: all.
    data_dir : str or Path, optional
        Where copies of public benchmarks lie; None reads them from the hub.
    on_error : {"stop", "skip"}
        What happens at a row or picture that can't be used: stop, or leave it out (``TaskSet.skipped`` names it).

    Raises
    ------
    FileNotFoundError, ValueError
        For an unknown name, a missing file, a row that can't be used; the message names it.
    """
    names = [str(source)] if isinstance(source, str | Path) else list(source)
    place = Path(data_dir) if data_dir is not None else None
    if names == [BUNDLED]:
        tasks, chosen = load_asked(None, None, place, on_error)
    elif len(names) == 1 and Path(names[0]).is_dir() and not names[0].startswith(LMMS):
        tasks, chosen = load_asked(None, Path(names[0]), place, on_error)
    else:
        tasks, chosen = load_asked(names, None, place, on_error)
    return check_media(tasks.subset(chosen, limit), on_error)


@dataclass(frozen=True)
class Answers:
    """What the settings of a sweep answered, with all that a comparison or a report needs.

    Attributes
    ----------
    rows : mapping
        By setting (its canonical text) and question id: prediction, score in [0, 1], visual tokens, FLOPs
        (docs/results.md).
    costs : dict
        What each line of the table costs, by setting.
    folder : Path
        Where the answers are kept; the same sweep begun again finds them.
    second : ResultStore, optional
        Second questions on the cache that a first one was pruned for; None where none can be asked.
    """

    job: Job
    store: ResultStore
    costs: dict[str, Cost]
    seconds: float
    second: ResultStore | None = None

    @property
    def rows(self) -> Mapping[tuple[str, str], Mapping[str, Any]]:
        """See above."""
        return self.store.rows

    @property
    def folder(self) -> Path:
        """See above."""
        return self.job.folder

    @property
    def left_out(self) -> dict[str, str]:
        """Methods of ``"all"`` that could not run on this model, and why."""
        return self.job.plan.left_out

    def lines(self) -> dict[str, Line]:
        """The lines of the table by method and keep (``"dart 25%"``), the seeds of a method together."""
        cells = self.job.plan.cells
        lines = pool_lines(cells, {cell.spec: self.store.cell(cell.spec) for cell in cells})
        return {f"{line.first.method} {keep_text(line.first.keep)}".strip(): line for line in lines}


def run_sweep(
    tasks: TaskSet,
    pruners: str | Sequence[str] = DEFAULT_PRUNERS,
    keep: int | float | Sequence[int | float] = DEFAULT_KEEPS,
    model: str | nn.Module = BUNDLED,
    processor: Any = None,
    folder: str | Path | None = None,
    timing: int = 0,
    progress: bool = True,
    **options: Any,
) -> Answers:
    """Have the unpruned model and every method at every keep answer the same questions; what is there is not redone.

    Parameters
    ----------
    tasks : TaskSet
        The questions, see ``load_tasks``.
    pruners : str or sequence of str
        Methods or pipelines, ``"dart"``, ``"random(layer=2)"``; ``"all"`` is every one that can run. Random baselines
        are added (``random=False``: not).
    keep : int, float or sequence of them
        An int is tokens per image, a float in (0, 1] the fraction of them.
    model : str or nn.Module
        ``"bundled"``, a folder, a hub id, or a transformers VLM that is loaded already, with its `processor`.
    folder : str or Path, optional
        Where results go; the default is the one of ``vtc bench``.
    timing : int
        Measured turns of the prefill's time; 0: none.
    progress : bool
        Show bars.
    **options
        Those of ``OPTIONS``, as ``vtc bench`` has them: ``seeds``, ``batch_size``, ``device``, ``dtype``, ...

    Raises
    ------
    ValueError, TypeError, OSError
        For what does not work; the message is one line. What was answered is kept.
    """
    unknown = sorted(options.keys() - set(OPTIONS))
    if unknown:
        raise TypeError(f"run_sweep has no option {unknown[0]!r}; there is: {', '.join(OPTIONS)}")
    methods = (pruners,) if isinstance(pruners, str) else tuple(pruners)
    keeps = (keep,) if isinstance(keep, int | float) else tuple(keep)
    started = time.time()
    place = Path(folder) if folder is not None else None
    asked = BenchOptions(pruners=methods, keeps=keeps, output=place, timing=timing, **options)
    if isinstance(model, str):
        asked = replace(asked, model=None if model == BUNDLED else model)
    else:
        asked = replace(asked, workers=1)  # others could not load it
    console = Console(quiet=not progress)
    load = (lambda: load_model(*asked.source)) if isinstance(model, str) else (lambda: _in_memory(model, processor))
    job = Job.of(asked, load, tasks, tasks, console)
    with writing_to(job.folder), job.store() as store, make_progress(console) as bars:
        estimator = job.answer(store, bars)
        costs = job.costs(store, bars, estimator)
        second = job.second(console, bars)
    return Answers(job, store, costs, time.time() - started, second)


def _in_memory(model: nn.Module, processor: Any) -> Loaded:
    """A loaded model, told from others by a sample of its weights."""
    if processor is None:
        raise ValueError("a model that is loaded already needs its processor: run_sweep(..., processor=processor)")
    if hasattr(model, "vtc"):
        raise ValueError("the model is wrapped already: call vtc.restore(model) first, a sweep wraps it by itself")
    digest = hashlib.sha256(repr(model.config).encode())
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        digest.update(name.encode())
        digest.update(flat[:: max(1, len(flat) // SAMPLED)].float().cpu().numpy().tobytes())
    name = str(getattr(model, "name_or_path", "")) or type(model).__name__
    return Loaded(model.eval(), processor, name, digest.hexdigest()[:16])


def summarise(answers: Answers, match: str | None = None) -> list[CellSummary]:
    """A line for each method and keep: accuracy, paired difference to unpruned, verdict against random, costs.

    Parameters
    ----------
    answers : Answers
        See ``run_sweep``.
    match : {"keep", "mean-tokens", "flops"}, optional
        At what equal cost methods meet random; None: as the sweep's options say.
    """
    job, options = answers.job, answers.job.options
    match = options.match if match is None else match
    return summarise_sweep(answers.store, job.sweep, answers.costs, options.seed, match, answers.second)


def paired_difference(answers: Answers, method: str, reference: str = "unpruned") -> Comparison:
    """How much better `method` answers than `reference`, question by question, in [-1, 1].

    The 95% interval is a bootstrap over images, and over the seeds of methods that draw; the p-value is of an exact or
    sampled exchange test, not corrected for others.

    Parameters
    ----------
    answers : Answers
        See ``run_sweep``.
    method, reference : str
        Lines of the table, ``"dart 25%"``, ``"random(layer=2) 64"``, ``"unpruned"``.

    Raises
    ------
    ValueError
        For a line that is not there (those that are are listed), or without a question that both answered.
    """
    lines = answers.lines()
    for name in (method, reference):
        if name not in lines:
            raise ValueError(f"there is no line {name!r}; this sweep has: {', '.join(lines)}")
    of = answers.job.tasks.questions
    images, names = {q.question_id: q.image_id for q in of}, {q.question_id: q.task for q in of}
    questions = Questions(images, names, REPS, answers.job.options.seed)
    found = questions.compare(lines[method].runs, lines[reference].runs)
    if found is None:
        raise ValueError(f"{method!r} and {reference!r} have no question that both answered")
    return found


def report(answers: Answers) -> Path:
    """Write ``report.html`` (one page to open, keep or send), Markdown, CSV, JSON and a chart; gives its path."""
    job = answers.job
    about = job.about(answers.seconds)
    with writing_to(job.folder):
        write_files(job.folder, summarise(answers), about, answers.store, job.loaded, job.tasks, job.plan.cells)
    return job.folder / "report.html"
