"""The evaluation set that is made of an lmms-eval task."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from vtc.eval.tasks.media.media_store import MediaStore
from vtc.eval.tasks.questions import Question, TaskInfo, TaskSet
from vtc.eval.tasks.reading.unusable_rows import Problems

from .rows_to_questions import Reader, docs_of
from .task_lookup import PREFIX, Source, load_tasks, named

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def _fingerprint(questions: tuple[Question, ...], tasks: Mapping[str, Any]) -> str:
    """Changes with a prompt, a picture, an answer or a task's definition."""
    about = {name: _ADDRESS.sub("", json.dumps(task.dump_config(), default=str)) for name, task in tasks.items()}
    asked = [{k: v for k, v in asdict(q).items() if k != "fps"} for q in questions]  # no task of theirs says it
    return hashlib.sha256(json.dumps([asked, about, version("lmms-eval")]).encode()).hexdigest()[:16]


def load(name: str, include_path: str | None = None, limit: int | None = None, on_error: str = "stop") -> TaskSet:
    """See ``vtc.integrations.lmms_eval.load_lmms_task``."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} is out of range: it is the number of questions per task, at least 1")
    request, folder = named(name, include_path)
    tasks = load_tasks(request, folder)
    questions: list[Question] = []
    problems = Problems(on_error)
    media = MediaStore({}, {})
    info = {}
    for leaf, task in tasks.items():
        reader = Reader(Source(request, folder, leaf), task)
        count = len(docs_of(task))
        for i in range(count if limit is None else min(count, limit)):
            try:
                found = reader.question(i)
            except ValueError as error:
                problems.add("", error)
                continue
            if found is None:  # not broken: tasks with some questions of text alone are usual
                problems.skipped.append(f"lmms-eval's task {leaf} row {i}: has no image")
            else:
                questions.append(found)
        media = media.joined(MediaStore(reader.readers, reader.places))
        longest = (task.config.generation_kwargs or {}).get("max_new_tokens")
        info[leaf] = TaskInfo(title=leaf, source=str(task.config.dataset_path), max_new_tokens=longest)
    if not questions:
        first = f"; the first problem: {problems.skipped[0]}" if problems.skipped else ""
        raise ValueError(f"lmms-eval's task {request!r} has no question with an image that can be read{first}")
    present = {q.task for q in questions}
    return TaskSet(
        name=f"{PREFIX}:{request}",
        version=f"lmms-eval {version('lmms-eval')}",
        fingerprint=_fingerprint(tuple(questions), tasks),
        tasks=tuple(leaf for leaf in tasks if leaf in present),
        questions=tuple(questions),
        images=media,
        limit=limit,
        info=info,
        skipped=tuple(problems.skipped),
    )
