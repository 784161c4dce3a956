"""What a metric is, the registry of metrics, and the official figures of a task from its scored answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar

from vtc.eval.tasks.questions import Question

Rows = Sequence[Mapping[str, Any]]
_METRICS: dict[str, Metric] = {}
# metrics named PREFIX:... are made when asked for, by ``load_metric`` of a module
_MAKERS = {"lmms": "vtc.integrations.lmms_eval"}


class Metric:
    """Scores single answers, and makes a task's official figures from them.

    Attributes
    ----------
    name : str
        Its name in definitions.
    main : str
        Which of the figures is the headline.
    printed : str
        The one that papers print, where that is another.
    """

    name: ClassVar[str]
    main: ClassVar[str] = "accuracy"
    printed: ClassVar[str] = ""

    def parse(self, question: Question, prediction: str) -> str:
        """What was understood of a prediction; empty if it holds no answer of the kind that is asked for."""
        raise NotImplementedError

    def score(self, question: Question, prediction: str) -> float:
        """How right a prediction is, in [0, 1]; this is what is compared pairwise."""
        return float(self.parse(question, prediction) == question.answer)

    def check(self, question: Question) -> None:
        """Raise ValueError if the question's own answer is not of the kind that this metric scores."""

    def check_group(self, questions: Sequence[Question]) -> None:
        """Raise ValueError if the questions of one group are not what this metric scores together."""

    def aggregate(self, rows: Rows) -> dict[str, float]:
        """The official figures of a task.

        Parameters
        ----------
        rows : sequence of mappings
            One per question, with its "score", "parsed", "answer", "group" and "category" (see ``official``).

        Returns
        -------
        dict
            Fractions in [0, 1] unless the name is a score's; ``NAME/PART`` are those of one category.
        """
        return by_category(rows, mean_score) | {"unparsed": share(rows, lambda row: row["parsed"] == "")}


def share(rows: Rows, holds: Callable[[Mapping[str, Any]], bool]) -> float:
    """The fraction of rows for which `holds`; 0 of none."""
    return sum(map(holds, rows)) / len(rows) if rows else 0.0


def mean_score(rows: Rows) -> dict[str, float]:
    """The plain accuracy."""
    return {"accuracy": sum(row["score"] for row in rows) / len(rows) if rows else 0.0}


def grouped(rows: Rows, column: str) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by the value of a column, those without one left out."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get(column):
            found.setdefault(str(row[column]), []).append(row)
    return found


def by_category(rows: Rows, figures: Callable[[Rows], dict[str, float]]) -> dict[str, float]:
    """The figures of all rows, of each category where there are several, and their plain mean over the categories."""
    result = figures(rows)
    parts = {name: figures(part) for name, part in grouped(rows, "category").items()}
    if len(parts) > 1:
        first = next(iter(result))
        result["category_average"] = sum(part[first] for part in parts.values()) / len(parts)
        for name, part in parts.items():
            result |= {f"{figure}/{name}": value for figure, value in part.items()}
    return result


def register(kind: type[Metric]) -> type[Metric]:
    """Make a metric known by its name."""
    _METRICS[kind.name] = kind()
    return kind


def metric(name: str) -> Metric:
    """Look up a metric.

    Raises
    ------
    ValueError
        For an unknown name; the known ones are listed.
    """
    maker = _MAKERS.get(name.partition(":")[0])
    if maker is not None:
        return import_module(maker).load_metric(name)
    if name not in _METRICS:
        raise ValueError(f"unknown metric {name!r}. There is: {', '.join(list_metrics())}")
    return _METRICS[name]


def list_metrics() -> list[str]:
    """Names of all metrics."""
    return sorted(_METRICS)


def official(questions: Iterable[Question], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The official figures of each task.

    Parameters
    ----------
    questions : iterable of Question
        What was asked.
    rows : mapping
        Result rows of ONE cell by question id, each with at least "score" and "parsed" (or "prediction", of which it is
        made); questions without one are left out.
    """
    tasks: dict[str, list[dict[str, Any]]] = {}
    names: dict[str, str] = {}
    for q in questions:
        if q.question_id in rows:
            own = {"question_id": q.question_id, "answer": q.answer, "group": q.group, "category": q.category}
            row = rows[q.question_id]
            parsed = row["parsed"] if "parsed" in row else metric(q.metric).parse(q, row["prediction"])
            tasks.setdefault(q.task, []).append({**row, **own, "parsed": parsed})
            names.setdefault(q.task, q.metric)
    return {task: metric(names[task]).aggregate(part) for task, part in tasks.items()}
