"""Which questions a sweep asks: the bundled tasks, a folder, public benchmarks, definitions, tasks of lmms-eval."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vtc.bundled_files import bundled_data
from vtc.eval.tasks.questions import TaskInfo, TaskSet
from vtc.eval.tasks.reading.definition import definition, list_definitions
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.tasks.reading.read_benchmarks import joined, load_benchmarks
from vtc.eval.tasks.reading.unusable_rows import check_media

from .options import DEFAULT_LIMIT, RunOptions

LMMS = "lmms:"


@functools.cache
def bundled_tasks() -> TaskSet:
    """The evaluation set that comes with vtc; read once."""
    return replace(load_tasks(bundled_data()), name="bundled")


def _public(names: Sequence[str]) -> list[str]:
    """Those of `names` that are ready definitions, or files of such."""
    return [n for n in names if n in list_definitions() or (n.endswith((".yaml", ".yml")) and not n.startswith(LMMS))]


def refuse_tasks(names: Sequence[str]) -> None:
    """Refuse a name of ``--tasks`` without ``--data`` that means nothing.

    Raises
    ------
    ValueError
        Naming it and what there is.
    """
    for name in names:
        if name not in (*_public(names), *bundled_tasks().tasks) and not name.startswith(LMMS):
            known = f"{', '.join(bundled_tasks().tasks)} (bundled); {', '.join(list_definitions())} (public)"
            raise ValueError(f"unknown task {name!r}. There is: {known}; a definition's .yaml; lmms:NAME of lmms-eval")


def load_asked(
    tasks: Sequence[str] | None,
    data: Path | None = None,
    data_dir: Path | None = None,
    on_error: str = "stop",
    include_path: Path | None = None,
) -> tuple[TaskSet, list[str] | None]:
    """The evaluation set that ``--tasks``, ``--data`` and ``--data-dir`` mean.

    Parameters
    ----------
    tasks : sequence of str, optional
        With `data` tasks of that folder; else bundled tasks, ready definitions, YAML files or ``lmms:NAME``.
    data : Path, optional
        An evaluation set, or a folder with definitions.
    data_dir : Path, optional
        Where public benchmarks lie; None reads them from the hub.
    on_error : str
        "stop" at a row that can't be used, or "skip" it.
    include_path : Path, optional
        More tasks for lmms-eval.

    Returns
    -------
    everything : TaskSet
        The whole set.
    names : list of str, optional
        The tasks of it that were meant; None is all.
    """
    if data is not None:
        if data_dir is not None:
            raise ValueError("--data is an evaluation set of its own: leave out --data-dir")
        return load_tasks(data, on_error), list(tasks) if tasks else None
    if not tasks:
        if data_dir is not None:
            raise ValueError(f"--data-dir needs --tasks: {', '.join(list_definitions())}")
        return bundled_tasks(), None
    names = list(dict.fromkeys(tasks))
    refuse_tasks(names)
    bundled, public = bundled_tasks(), _public(names)
    own_names = [n for n in names if n in bundled.tasks]
    theirs = [n for n in names if n.startswith(LMMS)]
    if own_names == names:
        return bundled, names
    sets = [bundled.subset(own_names)] if own_names else []
    beside = [n for n in public if n not in list_definitions() and definition(n).hub is None]
    if ours := [n for n in public if n not in beside]:
        sets.append(load_benchmarks(ours, data_dir, on_error))
    if beside:  # their data lie beside them
        sets.append(load_benchmarks(beside, None, on_error))
    if theirs:
        from vtc.integrations.lmms_eval import load_lmms_task

        folder = str(include_path) if include_path else None
        sets += [load_lmms_task(n.removeprefix(LMMS), folder, on_error=on_error) for n in theirs]
    twice = [t for i, s in enumerate(sets) for t in s.tasks if any(t in other.tasks for other in sets[:i])]
    if twice:
        raise ValueError(f"two of --tasks are called {twice[0]!r}: run them one by one")
    return (sets[0] if len(sets) == 1 else joined(sets)), None


def asked_questions(options: RunOptions, default: int = DEFAULT_LIMIT) -> tuple[TaskSet, TaskSet]:
    """The whole evaluation set of a job, and the questions of it that are asked.

    `default` is the number of questions per task of the bundled model on its own tasks.
    """
    everything, names = load_asked(
        options.tasks, options.data, options.data_dir, options.on_error, options.include_path
    )
    own = options.model is None and everything.name == "bundled"
    tasks = everything.subset(names, default if options.limit is None and own else options.limit)
    if options.num_frames:  # whoever looks at a video of the set sees as many
        told = {t: replace(tasks.info.get(t, TaskInfo()), num_frames=options.num_frames) for t in tasks.tasks}
        tasks = replace(tasks, info=told)
    return everything, check_media(tasks, options.on_error)


def a_part(tasks: TaskSet, part: int, parts: int) -> TaskSet:
    """One of several parts of the questions, image by image."""
    if parts == 1:
        return tasks
    groups = tasks.groups()
    if part > len(groups):
        raise ValueError(f"--shard {part}/{parts}: there are only {len(groups)} images")
    return tasks.part([q for group in groups[part - 1 :: parts] for q in group])
