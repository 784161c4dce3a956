"""An lmms-eval task's own scores and figures, as a metric."""

from __future__ import annotations

import warnings
from collections import defaultdict
from functools import lru_cache
from typing import Any

from vtc.eval.tasks.metrics.base import Metric, Rows, share
from vtc.eval.tasks.questions import Question

from .task_lookup import Source, load_tasks
from .task_scoring import Judge, reason


class LmmsMetric(Metric):
    """Scores by an lmms-eval task; a sample's score is the first of its figures that says something of one sample."""

    def __init__(self, source: Source, task: Any):
        self.judge = Judge(task)
        if not self.judge.scores:
            raise ValueError(
                f"lmms-eval's task {source.task!r} has no figure that is better when larger, without a server"
            )
        vars(self).update(name=source.metric, main=self.judge.scores[0])

    def parse(self, question: Question, prediction: str) -> str:
        """The prediction behind the task's filters, which is what it scores."""
        return self.judge.filtered(_row(question.question_id), prediction).strip()

    def score(self, question: Question, prediction: str) -> float:
        """The task's score of one sample.

        Raises
        ------
        ValueError
            Where it fails, gives no number, or one outside [0, 1].
        """
        row, judge = _row(question.question_id), self.judge
        values = judge.values(row, prediction)
        for name in filter(values.__contains__, judge.scores):
            number = judge.sample(name, values[name], row, question.answer)
            if number is not None and not 0 <= number <= 1:
                raise ValueError(f"{judge.called(row)}: {name} is {number:g}, vtc bench compares scores in [0, 1]")
            if number is not None:
                return number
        raise ValueError(f"{judge.called(row)}: {', '.join(judge.scores)} give no number for one sample")

    def aggregate(self, rows: Rows) -> dict[str, float]:
        """The task's own figures, as many as are numbers.

        Where it can't compute one of these rows it is left out with a warning: MME's need all questions, in pairs.
        """
        found: dict[str, list[Any]] = defaultdict(list)
        for row in rows:
            for name, value in self.judge.values(_row(row["question_id"]), row["prediction"]).items():
                found[name].append(value)
        figures: dict[str, float] = {}
        for name in filter(found.__contains__, self.judge.aggregations):
            try:
                figure = self.judge.figure(name, found[name])
            except Exception as error:
                called = self.judge.task.config.task
                warnings.warn(f"lmms-eval's task {called!r} gives no {name}: {reason(error)}", stacklevel=2)
                continue
            if figure is not None:
                figures[name] = figure
        return figures | {"unparsed": share(rows, lambda row: row["parsed"] == "")}


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
