"""Rows of data sets in their published form: parquet, jsonl and json files of a local folder, or the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtc.eval.tasks.media.media_store import Cell, Media, ParquetCells, as_media
from vtc.pruners.untrusted_json import parse_json

from .definition import Definition

SUFFIXES = (".parquet", ".jsonl", ".json")


@dataclass(frozen=True)
class Row:
    """A row, or what is wrong with it.

    ``place`` is its file and row (from 1 on), ``number`` its number among all rows, ``file`` the file's name without
    ending, ``media`` what reads its image column (several for a list, None without such a column).
    """

    place: str
    number: int
    file: str
    values: dict[str, Any] = field(default_factory=dict)
    media: Sequence[Callable[[], Media]] | None = None
    listed: bool = False
    problem: str = ""


@dataclass(frozen=True)
class FileCell:
    """Reads one image out of a parquet file."""

    cells: ParquetCells
    cell: Cell
    folder: Path

    def __call__(self) -> Media:
        """Read it."""
        return as_media(self.cells.read(self.cell), self.folder)


@dataclass(frozen=True)
class Value:
    """An image that the row itself holds or names."""

    value: Any
    folder: Path

    def __call__(self) -> Media:
        """Read it."""
        return as_media(self.value, self.folder)


def _folders(definition: Definition, data_dir: Path) -> list[Path]:
    """Where a data set may lie below `data_dir`: named as on the hub or as the task, or there itself."""
    names = [definition.task]
    if definition.hub:
        names = [definition.hub, definition.hub.split("/")[-1], *names]
    wanted = {name.lower() for name in names}
    found = [data_dir / name for name in names if (data_dir / name).is_dir()]
    found += [p for p in sorted(data_dir.iterdir()) if p.is_dir() and p.name.lower() in wanted and p not in found]
    return [*found, data_dir]


def _patterns(config: str | None, split: str) -> list[str]:
    bases = [f"{config}/", f"data/{config}/"] if config else []
    stems = ("{}-*", "{}", "{}/*", "{}_*")
    return [base + stem.format(split) + s for base in (*bases, "data/", "") for stem in stems for s in SUFFIXES]


def find_files(
    definition: Definition, data_dir: Path, files: Sequence[str] = (), config: str | None = None, split: str = ""
) -> tuple[Path, list[Path]]:
    """The data files of a definition in a local folder, and the folder that their relative paths start from.

    Raises
    ------
    FileNotFoundError
        If there are none; the message says where and by which names they were looked for.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"no such folder: {data_dir}")
    patterns = list(files) or _patterns(config, split)
    folders = _folders(definition, data_dir)
    for folder in folders:
        for pattern in patterns:
            found = sorted(p for p in folder.glob(pattern) if p.is_file() and p.suffix in SUFFIXES)
            if found:
                return folder, found
    looked = ", ".join(str(folder) for folder in folders)
    raise FileNotFoundError(
        f"no data of {definition.task} in {looked}: looked for {', '.join(patterns[:6])}"
        + (" and the like" if len(patterns) > 6 else "")
        + (f" (the hub's {definition.hub})" if definition.hub else "")
    )


def read_files(files: Sequence[Path], folder: Path, image: str | None, needed: set[str]) -> Iterator[Row]:
    """Rows of all files in order.

    Parameters
    ----------
    files, folder
        From ``find_files``.
    image : str, optional
        The image column, which is read only when it is asked for.
    needed : set of str
        Columns that have to be there.

    Raises
    ------
    ValueError
        For a file that can't be read at all or that lacks a column. Single bad rows come as rows with a problem.
    """
    number = 0
    cells = ParquetCells()
    for path in files:
        read = _parquet if path.suffix == ".parquet" else _json
        for row in read(path, folder, image, needed, cells):
            number += 1
            yield Row(row.place, number, path.stem, row.values, row.media, row.listed, row.problem)


def _lacks(path: Path, needed: set[str], have: Sequence[str]) -> None:
    for column in sorted(needed):
        if column not in have and column.partition(".")[0] not in have:
            raise ValueError(
                f"{path} has no column {column!r}; the task needs {', '.join(sorted(needed))}, it has {', '.join(have)}"
            )


def _parquet(path: Path, folder: Path, image: str | None, needed: set[str], cells: ParquetCells) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        _lacks(path, needed | ({image} if image else set()), schema.names)
        others = [name for name in schema.names if name != image]
        kind = schema.field(image).type if image else None
        listed = image is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind))
        place = 0
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=others).to_pylist()
            count = file.metadata.row_group(group).num_rows
            sizes = _list_sizes(file, group, image) if listed and image else [None] * count
            for i, size in enumerate(sizes):
                place += 1
                items: list[int | None] = [None] if size is None else list(range(size))
                media = image and [FileCell(cells, Cell(path, image, group, i, item), folder) for item in items]
                yield Row(f"{path} row {place}", 0, "", rows[i] if others else {}, media or None, listed)
    except (pa.ArrowInvalid, OSError) as e:
        raise ValueError(f"{path} is not a readable parquet file: {str(e).splitlines()[0]}") from None


def _list_sizes(file: Any, group: int, image: str) -> list[int]:
    """How many images each row of a group has, without reading their bytes where they have paths beside them."""
    leaves = [file.schema.column(i).path for i in range(len(file.schema))]
    paths = [leaf for leaf in leaves if leaf.startswith(f"{image}.") and leaf.endswith(".path")]
    column = file.read_row_group(group, columns=paths or [image])[image]
    return [len(item) if item.is_valid else 0 for item in column]


def _json(path: Path, folder: Path, image: str | None, needed: set[str], cells: ParquetCells) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is not readable as text: {e}") from None
    if path.suffix == ".json":
        try:
            records = parse_json(text)
        except ValueError as e:
            raise ValueError(f"{path} is not valid JSON: {e}") from None
        if not isinstance(records, list):
            raise ValueError(f"{path} must hold a list of rows")
        found = [(f"{path} row {i}", record, "") for i, record in enumerate(records, 1)]
    else:
        lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        found = [(f"{path} line {i}", *_line(line)) for i, line in lines]
    for place, record, problem in found:
        if not problem and not isinstance(record, dict):
            problem = f"is no mapping of columns to values but {str(record)[:40]!r}"
        elif not problem and image and image not in record:
            problem = f"has no column {image!r} (the definition's 'image'); it has {', '.join(record)}"
        if problem:
            yield Row(place, 0, "", problem=problem)
            continue
        value = record.pop(image) if image else None
        values = value if isinstance(value, list) else [value]
        media = [Value(v, folder) for v in values] if image else None
        yield Row(place, 0, "", record, media, isinstance(value, list))


def _line(line: str) -> tuple[Any, str]:
    try:
        return parse_json(line), ""
    except ValueError as e:
        return None, f"is not valid JSON ({e}); the line may have been cut off"
