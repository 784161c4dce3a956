"""What a sweep leaves behind for programs: ``summary.csv`` and ``summary.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vtc.eval.files.atomic import write_atomic
from vtc.eval.files.csv_file import write_rows
from vtc.eval.statistics.cell_summary import CellSummary


def _clean(value: Any) -> Any:
    """JSON has no NaN, and shows the names of a tuple's parts only where they are keys."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {k: _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: Path, cells: Sequence[CellSummary]) -> None:
    """Write ``summary.csv``, one line per cell, accuracies and differences in [0, 1]."""
    write_rows(path, [cell.flat() for cell in cells])


def write_json(path: Path, cells: Sequence[CellSummary], about: dict[str, Any]) -> None:
    """Write ``summary.json``: `about` (configuration, versions, hardware, command) and all cells."""
    listed = []
    for cell in cells:
        row = asdict(cell)
        if cell.time:
            row["time"] |= {"ratio": cell.time.ratio, "lm_ratio": cell.time.lm_ratio}
        listed.append(row)
    text = json.dumps(_clean({**about, "cells": listed}), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n")


def unpruned_of(cells: Sequence[CellSummary]) -> CellSummary | None:
    """The reference among the summaries."""
    return next((cell for cell in cells if cell.is_unpruned), None)
