"""CSV files that a spreadsheet shows as they are: no text of a task's or a method's name is run as a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .atomic import write_atomic

FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "＝",
    "＋",
    "－",
    "＠",
)  # may begin one


def plain_cell(value: Any) -> Any:
    """A cell's value; a text that a spreadsheet would run gets an apostrophe before it, as OWASP advises.

    Numbers stay numbers, negative ones too. Leading blanks, which spreadsheets skip, hide nothing.
    """
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")  # would end the line, unquoted, in some readers
    return f"'{text}" if value.lstrip(" ").startswith(FORMULA) else text


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one line per row in one go; the columns are those of all rows, in the order of their first appearance."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(plain_cell, names))
    writer.writerows([plain_cell(row.get(name, "")) for name in names] for row in rows)
    write_atomic(path, text.getvalue())
