"""Rows of a data set on the hub, through the ``datasets`` library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.eval.tasks.media.media_store import Media, as_media

from .data_files import Row
from .definition import Definition


@dataclass(frozen=True)
class HubCell:
    """Reads one image out of a loaded data set (in its arrow form, so that nothing is decoded on the way)."""

    table: Any
    index: int
    column: str
    item: int | None

    def __call__(self) -> Media:
        """Read it."""
        value = self.table[self.index][self.column][0]
        return as_media(value.as_py() if self.item is None else value[self.item].as_py(), Path())


def read_hub(
    definition: Definition, image: str | None, needed: set[str], config: str | None = None, split: str = ""
) -> Iterator[Row]:
    """Rows of one split.

    Raises
    ------
    ValueError
        Without ``datasets``, without such a data set (or a connection to the hub), and for a missing column.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"reading {definition.task} from the hub needs datasets: pip install 'vtc[hub]', or give a folder that "
            f"holds a copy of {definition.hub}"
        ) from None
    name = f"{definition.hub} ({config or 'default'}, {split})"
    try:
        table: Any = datasets.load_dataset(definition.hub, config, split=split, revision=definition.revision)
    except Exception as e:  # the library passes on whatever its back ends raise
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ValueError(f"can't load {name} from the hub: {reason}") from None
    wanted = needed | ({image} if image else set())
    for column in sorted(wanted):
        if column.partition(".")[0] not in table.column_names and column not in table.column_names:
            raise ValueError(f"{name} has no column {column!r}; it has {', '.join(table.column_names)}")
    import pyarrow as pa

    raw = table.with_format("arrow")
    plain = table.remove_columns([image]) if image else table
    for i in range(len(table)):
        cell = raw[i][image][0] if image else None
        listed = cell is not None and (pa.types.is_list(cell.type) or pa.types.is_large_list(cell.type))
        items: list[int | None] = list(range(len(cell))) if listed and cell is not None else [None]
        media = [HubCell(raw, i, image, item) for item in items] if image else None
        values = plain[i] if plain.column_names else {}
        yield Row(f"{name} row {i + 1}", i + 1, split, values, media, listed)
