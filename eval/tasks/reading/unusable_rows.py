"""What happens to rows that can't be used: the first one stops the reading, or all are left out, counted and named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from vtc.eval.tasks.questions import Question, TaskSet

ON_ERROR = ("stop", "skip")


@dataclass
class Problems:
    """Collects rows that can't be used.

    ``skipped`` has a line for each, ``torn`` the (task, group) of those whose group is known: it is no longer whole.
    """

    on_error: str = "stop"
    skipped: list[str] = field(default_factory=list)
    torn: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error={self.on_error!r} is unknown: allowed are {', '.join(ON_ERROR)}")

    def add(self, place: str, reason: object, task: str = "", group: str = "") -> None:
        """Note a row, or stop.

        Raises
        ------
        ValueError
            With "stop"; the message names the place.
        """
        line = f"{place}: {reason}" if place else str(reason)
        if self.on_error == "stop":
            raise ValueError(line)
        self.skipped.append(line)
        if group:
            self.torn.add((task, group))


def whole_groups(questions: Iterable[Question], problems: Problems, places: Mapping[str, str]) -> list[Question]:
    """The questions without those of groups that miss one: they could not be scored together."""
    from vtc.eval.tasks.metrics import metric

    questions = list(questions)
    groups: dict[tuple[str, str], list[Question]] = {}
    for q in questions:
        if q.group:
            groups.setdefault((q.task, q.group), []).append(q)
    for (task, group), members in groups.items():
        try:
            if (task, group) in problems.torn:
                raise ValueError(f"another row of its group {group!r} can't be used")
            metric(members[0].metric).check_group(members)
        except ValueError as e:
            for q in members:
                problems.add(places.get(q.question_id, ""), e, task, group)
    return [q for q in questions if (q.task, q.group) not in problems.torn]


def check_media(tasks: TaskSet, on_error: str = "stop") -> TaskSet:
    """Decode everything that the questions are about, before a model is loaded or hours are spent.

    Parameters
    ----------
    tasks : TaskSet
        The questions that will be asked, so after ``subset``.
    on_error : str
        "stop" at the first image or video that can't be read, or "skip" its questions (and those scored with them).

    Returns
    -------
    TaskSet
        The usable questions; ``skipped`` has a line for each of the others.
    """
    problems, good = Problems(on_error), []
    broken: dict[tuple[str, ...], Exception] = {}
    fine: set[tuple[str, ...]] = set()
    for q in tasks.questions:
        if q.media not in fine and q.media not in broken:
            try:
                for picture in tasks.visuals(q):
                    picture.close()
                fine.add(q.media)
            except (ValueError, OSError) as e:
                broken[q.media] = e
        if q.media in broken:
            problems.add(f"question {q.question_id}", broken[q.media], q.task, q.group)
        else:
            good.append(q)
    left = whole_groups(good, problems, {q.question_id: f"question {q.question_id}" for q in good})
    if not left:
        raise ValueError(f"no question is left; the first problem: {problems.skipped[0]}")
    return replace(tasks.part(left), skipped=(*tasks.skipped, *problems.skipped))
