"""lmms-eval's tasks, found and loaded by its own manager."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vtc.pruners.registry import nearest

PREFIX = "lmms"


@dataclass(frozen=True)
class Source:
    """Where a task comes from, for other processes to load it: what was asked for, a folder, and which task."""

    request: str
    include_path: str | None
    task: str

    @property
    def metric(self) -> str:
        """Name of the task's metric, which holds all of this."""
        more = f"@{self.include_path}" if self.include_path else ""
        return f"{PREFIX}:{self.request}{more}" + (f"#{self.task}" if self.task != self.request else "")

    @classmethod
    def of_metric(cls, name: str) -> Source:
        """Read it off a metric's name."""
        rest, _, task = name.removeprefix(f"{PREFIX}:").partition("#")
        request, _, include_path = rest.partition("@")
        return cls(request, include_path or None, task or request)

    def load(self) -> Any:
        """The task."""
        return load_tasks(self.request, self.include_path)[self.task]


@contextmanager
def quiet() -> Iterator[None]:
    """lmms-eval without its debug lines and progress bars, and without a setting that it leaves behind in Pillow.

    Raises
    ------
    ValueError
        If it is not installed.
    """
    from PIL import ImageFile

    if find_spec("lmms_eval") is None:
        raise ValueError("lmms-eval's tasks need it installed: pip install 'vtc[lmms]'")
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from loguru import logger

    truncated, silent = ImageFile.LOAD_TRUNCATED_IMAGES, are_progress_bars_disabled()
    logger.disable("")  # its tasks' own functions log under all kinds of names
    disable_progress_bars()
    try:
        yield
    finally:
        # with it, Pillow fills up broken pictures, also those of our own tasks, instead of naming them
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated
        logger.enable("")
        if not silent:
            enable_progress_bars()


def _managers(include_path: str | None) -> Iterator[Any]:
    """Those of the folder alone first: indexing all of lmms-eval's tasks takes several seconds."""
    from lmms_eval.tasks import TaskManager

    if include_path is not None:
        yield TaskManager("ERROR", include_path, include_defaults=False, model_name="vtc")
    yield TaskManager("ERROR", include_path, model_name="vtc")


def _leaves(tasks: Mapping[Any, Any]) -> dict[str, Any]:
    """The tasks of groups of groups, by name."""
    found: dict[str, Any] = {}
    for name, task in tasks.items():
        found |= _leaves(task) if isinstance(task, Mapping) else {str(name): task}
    return found


def _reason(error: BaseException) -> str:
    """The first line of an error, of the last one where lmms-eval tried several times."""
    attempt = getattr(error, "last_attempt", None)
    error = (attempt.exception() if attempt is not None else None) or error
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@lru_cache(maxsize=32)
def load_tasks(request: str, include_path: str | None) -> dict[str, Any]:
    """The tasks of a name, with their data, as lmms-eval gives them to backends that take chat messages.

    Raises
    ------
    ValueError
        Without lmms-eval, for an unknown name, and where it can't load a task or its data.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"no such folder of lmms-eval tasks: {include_path}")
    known: list[str] = []
    with quiet():
        from lmms_eval.tasks import get_task_dict

        for manager in _managers(include_path):
            if request not in manager.all_tasks:
                known = manager.all_tasks
                continue
            try:
                return _leaves(get_task_dict([request], manager, "chat"))
            except Exception as error:
                raise ValueError(f"lmms-eval can't load the task {request!r}: {_reason(error)}") from error
    raise ValueError(f"lmms-eval has no task {request!r}. {nearest(request, known)}")


def named(name: str, include_path: str | None) -> tuple[str, str | None]:
    """A task's name and folder; a YAML file stands for the task that it defines."""
    path = Path(name)
    if path.suffix != ".yaml":
        return name, str(Path(include_path).resolve()) if include_path is not None else None
    if not path.is_file():
        raise ValueError(f"no such task file: {name}")
    with quiet():
        from lmms_eval.utils import load_yaml_config

        task = load_yaml_config(str(path), mode="simple").get("task")
    if not isinstance(task, str):
        raise ValueError(f"{name} defines no single task of lmms-eval: it has no 'task: NAME'")
    return task, str(path.resolve().parent)
