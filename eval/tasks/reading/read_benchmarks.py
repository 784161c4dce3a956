"""Public benchmarks, and tasks of your own, as sets of questions: what ``--tasks pope,mme --data-dir DIR`` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from vtc.eval.tasks.media.media_store import MediaStore
from vtc.eval.tasks.questions import TaskInfo, TaskSet

from .data_files import Row, find_files, read_files
from .definition import Definition, ImageTable, definition, read_definition
from .hub_rows import read_hub
from .rows_to_questions import Reading, question_of
from .unusable_rows import Problems, whole_groups


def _rows(
    d: Definition, reading: Reading, image: str | None, needed: set[str], table: ImageTable | Definition
) -> tuple[Path, Iterator[Row]]:
    """Rows of the definition's own table, or of its images' one."""
    config, split = table.config, table.split or d.split
    if reading.data_dir is None:
        if not d.hub:
            raise ValueError(f"{d.path}: says no hub, so {d.task} needs a folder with its data")
        if d.video:
            raise ValueError(
                f"the videos of {d.task} are not in the hub's tables: download and unpack {d.hub}, and give its folder"
            )
        reading.files.append(f"{d.hub} {d.revision} {config} {split}")
        return Path(), read_hub(d, image, needed, config, split)
    folder, found = find_files(d, reading.data_dir, table.files, config, split)
    reading.files += [f"{path.name} {path.stat().st_size}" for path in found]
    return folder, read_files(found, folder, image, needed)


def _image_table(d: Definition, reading: Reading) -> None:
    """Note the images of a table of their own."""
    table = d.images
    assert table is not None
    _, rows = _rows(d, reading, table.image, {table.key}, table)
    for row in rows:
        if row.problem or not row.media:
            reading.problems.add(row.place, row.problem or f"has no {table.image!r}")
        else:
            reading.keep(f"{d.task}/{row.values[table.key]}", row.media[0], row.place)


def _read(d: Definition, reading: Reading) -> None:
    """Add a definition's questions."""
    if d.images:
        _image_table(d, reading)
    needed = {column for f in d.all_fields for column in f.columns} - ({d.image} if d.image else set())
    folder, rows = _rows(d, reading, d.image, needed, d)
    before = len(reading.questions)
    for row in rows:
        group = ""
        try:
            if row.problem:
                raise ValueError(row.problem)
            if d.group:
                group = d.group.string(row.values, vars=d.vars, file=row.file, number=row.number)
            question = question_of(d, folder, row, reading)
            if question is None:
                continue
            first = reading.places.setdefault(question.question_id, row.place)
            if first != row.place:
                raise ValueError(f"question id {question.question_id!r} occurs more than once, first in {first}")
            reading.questions.append(question)
        except (ValueError, OSError) as e:
            reading.problems.add(row.place, e, d.task, group)
    if len(reading.questions) == before:
        raise ValueError(_nothing(d.task, reading.problems))


def _nothing(name: str, problems: Problems) -> str:
    first = f"; the first problem: {problems.skipped[0]}" if problems.skipped else ""
    return f"{name} has no question that can be used{first}"


def _taskset(definitions: Sequence[Definition], data_dir: Path | None, name: str, on_error: str) -> TaskSet:
    reading = Reading(data_dir, Problems(on_error))
    for d in definitions:
        _read(d, reading)
    questions = whole_groups(reading.questions, reading.problems, reading.places)
    if not questions:
        raise ValueError(_nothing(name, reading.problems))
    content = (questions, sorted(reading.files))
    times = (reading.clips, [(q.question_id, q.fps) for q in questions if q.fps])
    digest = hashlib.sha256(repr((*content, times) if any(times) else content).encode()).hexdigest()[:16]
    info = {d.task: TaskInfo(d.title, d.hub or str(d.path), d.max_new_tokens, d.num_frames) for d in definitions}
    present = {q.task for q in questions}
    tasks = tuple(d.task for d in definitions if d.task in present)
    store = MediaStore(reading.media, reading.media_places)
    return TaskSet(
        name,
        digest[:8],
        digest,
        tasks,
        tuple(questions),
        store,
        info=info,
        skipped=tuple(reading.problems.skipped),
    )


def load_benchmarks(names: Sequence[str], data_dir: str | Path | None = None, on_error: str = "stop") -> TaskSet:
    """Read public benchmarks (or tasks of your own) by their definitions.

    Parameters
    ----------
    names : sequence of str
        Ready definitions (``list_definitions``) or YAML files.
    data_dir : str or Path, optional
        A folder with local copies, each below it under its name on the hub or its task's (or it is one itself). None
        reads them from the hub; a YAML file's data without a hub lie beside it.
    on_error : str
        "stop" at the first row that can't be used, or "skip" such rows: ``TaskSet.skipped`` names them.

    Raises
    ------
    FileNotFoundError, ValueError
        For an unknown name, missing data or columns, and with "stop" for a bad row; file and row are named.
    """
    found = [definition(name) for name in dict.fromkeys(names)]
    if not found:
        raise ValueError("no task is named")
    twice = [d.task for i, d in enumerate(found) if d.task in {e.task for e in found[:i]}]
    if twice:
        raise ValueError(f"two definitions are of the task {twice[0]!r}")
    sets = [
        _taskset([d], Path(data_dir) if data_dir else (d.path.parent if not d.hub else None), d.task, on_error)
        for d in found
    ]
    return sets[0] if len(sets) == 1 else joined(sets)


def joined(sets: Sequence[TaskSet]) -> TaskSet:
    """Several sets whose tasks and images differ, as one; their media are in ``MediaStore``s."""
    store = MediaStore({}, {})
    for s in sets:
        assert isinstance(s.images, MediaStore)
        store = store.joined(s.images)
    digest = hashlib.sha256("".join(s.fingerprint for s in sets).encode()).hexdigest()[:16]
    return TaskSet(
        "+".join(s.name for s in sets),
        digest[:8],
        digest,
        tuple(t for s in sets for t in s.tasks),
        tuple(q for s in sets for q in s.questions),
        store,
        info={k: v for s in sets for k, v in s.info.items()},
        skipped=tuple(line for s in sets for line in s.skipped),
    )


def load_folder(folder: str | Path, on_error: str = "stop") -> TaskSet:
    """Read a folder that holds task definitions of your own (``*.yaml``) and their data."""
    folder = Path(folder)
    found = [read_definition(path) for path in sorted(folder.glob("*.yaml"))]
    return _taskset(found, folder, folder.name, on_error)
