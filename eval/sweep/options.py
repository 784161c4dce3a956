"""The options of a sweep, and what follows from them before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vtc.eval.tasks.questions import TaskSet
from vtc.eval.tasks.reading.unusable_rows import ON_ERROR
from vtc.eval.terminal.option_checks import check_choice, check_output_file
from vtc.eval.vlm.pruning_settings import CACHE_BYTES, DEFAULT_KEEPS, DEFAULT_PRUNERS

from .paper_recipes import Recipe
from .shell_commands import parse_shard

RULES = ("keep", "mean-tokens", "flops")  # by which methods are compared at equal cost
REPS = 2000  # bootstrap samples behind an interval
DEFAULT_LIMIT = 100
LONGEST = 16
IMAGES = 40  # about which second questions are asked


@dataclass
class RunOptions:
    """What every job takes that has a model answer questions; the command line's defaults.

    ``limit`` is the number of questions per task (None: a default with the bundled model on its own tasks, else all),
    ``share`` lets methods that don't read the question answer all questions of an image behind one prefill, and others
    the layers before their first choice, ``workers`` is the number of processes (None: chosen). ``max_new_tokens`` and
    ``num_frames`` stand for what the tasks' definitions say.
    """

    tasks: Sequence[str] | None = None
    model: str | None = None
    data: Path | None = None
    data_dir: Path | None = None
    include_path: Path | None = None
    on_error: str = "stop"
    limit: int | None = None
    output: Path | None = None
    seed: int = 0
    batch_size: int = 16
    max_new_tokens: int | None = None
    num_frames: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    share: bool = True
    workers: int | None = 1
    cache_bytes: int = CACHE_BYTES

    @property
    def source(self) -> tuple[str | None, str, str]:
        """Arguments of ``load_model``."""
        return self.model, self.device, self.dtype


@dataclass
class BenchOptions(RunOptions):
    """Options of a sweep; the command line's defaults.

    ``timing`` are the measured turns of the timings (0: none), ``second`` the pictures about which a second question is
    asked on the first one's cache. A ``recipe`` stands for pruners and keeps, and for the
    model where none is given. Methods that draw at random are run under ``seeds`` seeds from ``seed`` on, and
    ``random`` puts the random baselines into every sweep. ``only`` are the cells, by their specs, and ``shard`` the
    part "i/n" of the questions to answer; nothing else is measured then. ``emit`` is a file to write the cells'
    commands to, from ``arguments``, instead of running them.
    """

    pruners: Sequence[str] = DEFAULT_PRUNERS
    keeps: Sequence[int | float] = DEFAULT_KEEPS
    seeds: int = 3
    random: bool = True
    timing: int = 5
    second: int = IMAGES
    match: str = "keep"
    recipe: Recipe | None = None
    only: Sequence[str] | None = None
    shard: str | None = None
    emit: Path | None = None
    arguments: Sequence[str] | None = None

    @property
    def every_seed(self) -> range:
        """Seeds of each method that takes one."""
        return range(self.seed, self.seed + self.seeds)

    @property
    def partial(self) -> bool:
        """Whether only answers are computed, for another run to put together."""
        return self.only is not None or self.shard is not None


def check_options(options: BenchOptions) -> tuple[int, int]:
    """Check what needs no model; returns the part of the questions, 1 of 1 for all.

    Raises
    ------
    ValueError
        Naming the option, its value and what is allowed.
    """
    check_choice("--match", options.match, RULES)
    check_choice("--on-error", options.on_error, ON_ERROR)
    if options.second < 0:
        raise ValueError(f"--second {options.second} is out of range: a number of pictures, 0 for none")
    if options.seeds < 1:
        raise ValueError(f"--seeds {options.seeds} is out of range: at least 1")
    if options.emit is not None:
        check_output_file("--emit", options.emit)
    return parse_shard(options.shard) if options.shard else (1, 1)


def longest_answers(options: RunOptions, tasks: TaskSet) -> dict[str, int]:
    """Tokens that an answer may have, by task: as asked, as the task's definition says, else ``LONGEST``."""
    said = {t: (i.max_new_tokens if (i := tasks.info.get(t)) else None) for t in tasks.tasks}
    return {t: options.max_new_tokens or n or LONGEST for t, n in said.items()}


def frames_of(options: RunOptions, tasks: TaskSet) -> dict[str, int]:
    """Frames of a task's videos, where the options or its definition say how many."""
    said = {t: options.num_frames or (i.num_frames if (i := tasks.info.get(t)) else None) for t in tasks.tasks}
    return {t: n for t, n in said.items() if n}
