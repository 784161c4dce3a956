"""How an lmms-eval task judges answers: its filters, its ``process_results`` and its aggregations."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from .task_lookup import quiet


def number_of(value: Any, key: str | None = None) -> float | None:
    """A number, or the one under `key` in a mapping, where lmms-eval looks for scores; None if it is neither."""
    if isinstance(value, Mapping) and key is not None:
        value = value.get(key)
    return float(value) if isinstance(value, Real | np.bool_) else None


def reason(error: Exception) -> str:
    """Kind and message of an error."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


class Judge:
    """Judges answers to the rows of one task.

    Attributes
    ----------
    aggregations : dict
        What makes each of the task's figures of its samples, but for those that write files for a server.
    scores : list of str
        The figures that are better when larger.
    """

    def __init__(self, task: Any):
        self.task = task
        self.docs = task.eval_docs_no_media
        self.steps = list(task._filters[0].filters)
        if task.config.auto_strip_thinking and task.config.reasoning_tags is None:
            from lmms_eval.filters.transformation import StripThinkingFilter

            self.steps.insert(0, StripThinkingFilter())
        functions = task.aggregation().items()
        self.aggregations = {n: f for n, f in functions if "args" not in inspect.signature(f).parameters}
        self.scores = [name for name in self.aggregations if task.higher_is_better().get(name) is not False]

    def called(self, row: int) -> str:
        """How messages call a row."""
        return f"lmms-eval's task {self.task.config.task!r}, row {row}"

    def filtered(self, row: int, prediction: str) -> str:
        """A prediction behind the task's filters."""
        from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags

        answers: Any = [[prediction]]
        with quiet():
            for step in self.steps:
                answers = step.apply(answers, [self.docs[row]])
        text = next(iter(answers))
        text = text if isinstance(text, str) else text[0]
        tags = parse_reasoning_tags_config(task_value=self.task.config.reasoning_tags)
        return strip_reasoning_tags(text, tags) if tags is not None else text

    def values(self, row: int, prediction: str) -> dict[str, Any]:
        """What ``process_results`` gives for a prediction; lmms-eval itself would try five times, two seconds apart.

        Raises
        ------
        ValueError
            Where it fails; the row is named.
        """
        process = type(self.task).process_results
        process = getattr(process, "__wrapped__", process)
        try:
            answer = self.filtered(row, prediction)
            with quiet():
                return process(self.task, self.docs[row], [answer])
        except Exception as error:
            failed = f"its process_results failed on {prediction!r} ({reason(error)})"
            raise ValueError(f"{self.called(row)}: {failed}") from error

    def figure(self, name: str, values: Sequence[Any]) -> float | None:
        """One of the task's figures of the values of its samples; None where that is no number."""
        with quiet():
            return number_of(self.aggregations[name](list(values)))

    def sample(self, name: str, value: Any, row: int, answer: str) -> float | None:
        """The part of a figure that is about one sample.

        That is the sample's value if it is a number or has a score, as lmms-eval's own intervals take it; else the
        figure of this sample alone, as a share of what the task's own answer would get.
        """
        number = number_of(value, self.task.config.score_key)
        if number is not None:
            return number
        right = self.values(row, answer)
        if name not in right:
            return None
        best, own = self.figure(name, [right[name]]), self.figure(name, [value])
        return own / best if own is not None and best is not None and best > 0 else None
