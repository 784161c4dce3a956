"""What a sweep has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtc.eval.sweep.results_store import read_rows, result_files


def read_all(path: Path) -> list[dict[str, Any]]:
    """Rows of a results file and its siblings."""
    return [row for file in result_files(path) for row in read_rows(file)[0]]
