"""An lmms-eval task's own ``process_results``, filters and aggregation, as a metric."""

from __future__ import annotations

import inspect
import warnings
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vtc.eval.metrics.base import Metric, Rows, share

from .manager import Source, load_tasks

if TYPE_CHECKING:
    from vtc.eval.tasks import Question


def number_of(value: Any, key: str) -> float | None:
    """The score in what ``process_results`` gives for one sample, where lmms-eval itself looks for it; else None."""
    if isinstance(value, Mapping):
        value = value.get(key)
    return float(value) if isinstance(value, bool | int | float) else None


class LmmsMetric(Metric):
    """Scores by an lmms-eval task.

    A sample's score is the first of the task's figures that is better when larger and a number for one sample. Where
    the task keeps only what its aggregation needs, that is run on the sample alone, as a share of what it gives for the
    task's own answer.
    """

    def __init__(self, source: Source, task: Any):
        self.task = task
        self.steps = task._filters[0].filters
        functions = {
            name: function
            for name, function in task.aggregation().items()
            if "args" not in inspect.signature(function).parameters  # these write files for a server
        }
        self.aggregations = functions
        self.scoring = [name for name in functions if task.higher_is_better().get(name) is not False]
        if not self.scoring:
            raise ValueError(
                f"lmms-eval's task {source.task!r} has no figure that is computed here and better when larger"
            )
        vars(self).update(name=source.metric, main=self.scoring[0])

    def parse(self, question: Question, prediction: str) -> str:
        """The prediction behind the task's filters, which is what it scores."""
        return self._filtered(_row(question.question_id), prediction).strip()

    def score(self, question: Question, prediction: str) -> float:
        """The task's score of one sample.

        Raises
        ------
        ValueError
            Where it fails, gives no number, or one outside [0, 1].
        """
        row = _row(question.question_id)
        values = self._values(row, prediction)
        key = self.task.config.score_key
        for name in filter(values.__contains__, self.scoring):
            number = number_of(values[name], key)
            if number is None:
                number = self._share(name, values[name], row, question.answer)
            if number is not None:
                if not 0 <= number <= 1:
                    raise ValueError(f"{self._called(row)}: {name} is {number:g}, vtc bench compares scores in [0, 1]")
                return number
        raise ValueError(f"{self._called(row)}: {', '.join(self.scoring)} give no number for one sample")

    def aggregate(self, rows: Rows) -> dict[str, float]:
        """The task's own figures, as many as are numbers.

        Where it can't compute one of these rows it is left out with a warning: MME's need all questions, in pairs.
        """
        found: dict[str, list[Any]] = defaultdict(list)
        for row in rows:
            for name, value in self._values(_row(row["question_id"]), row["prediction"]).items():
                found[name].append(value)
        figures: dict[str, float] = {}
        for name in filter(found.__contains__, self.aggregations):
            try:
                figure = self.aggregations[name](found[name])
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".removesuffix(": ")
                warnings.warn(f"lmms-eval's task {self.task.config.task!r} gives no {name}: {reason}", stacklevel=2)
                continue
            if isinstance(figure, bool | int | float):
                figures[name] = float(figure)
        return figures | {"unparsed": share(rows, lambda row: row["parsed"] == "")}

    def _called(self, row: int) -> str:
        return f"lmms-eval's task {self.task.config.task!r}, row {row}"

    def _filtered(self, row: int, prediction: str) -> str:
        from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags

        answers: Any = [[prediction]]
        for step in self.steps:
            answers = step.apply(answers, [self.task.eval_docs_no_media[row]])
        text = next(iter(answers))
        text = text if isinstance(text, str) else text[0]
        tags = parse_reasoning_tags_config(task_value=self.task.config.reasoning_tags)
        return strip_reasoning_tags(text, tags) if tags is not None else text

    def _values(self, row: int, prediction: str) -> dict[str, Any]:
        """What ``process_results`` gives; without lmms-eval's five attempts, which take ten seconds to fail again."""
        process = type(self.task).process_results
        process = getattr(process, "__wrapped__", process)
        try:
            return process(self.task, self.task.eval_docs_no_media[row], [self._filtered(row, prediction)])
        except Exception as error:
            failed = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise ValueError(f"{self._called(row)}: its process_results failed on {prediction!r} ({failed})") from error

    def _share(self, name: str, value: Any, row: int, answer: str) -> float | None:
        """The aggregation of this sample alone, by that of the task's own answer."""
        aggregation = self.aggregations[name]
        best, own = aggregation([self._values(row, answer)[name]]), aggregation([value])
        if not all(isinstance(x, bool | int | float) for x in (best, own)) or not best > 0:
            return None
        return own / best


def _row(question_id: str) -> int:
    return int(question_id.rsplit("-", 1)[1])


@lru_cache(maxsize=32)
def metric_named(name: str) -> LmmsMetric:
    """The metric of a name, see ``Source.metric``; its task is loaded if it isn't yet."""
    source = Source.of_metric(name)
    tasks = load_tasks(source.request, source.include_path)
    if source.task not in tasks:
        raise ValueError(f"lmms-eval's {source.request!r} has no task {source.task!r}. There is: {', '.join(tasks)}")
    return LmmsMetric(source, tasks[source.task])
