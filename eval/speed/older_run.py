"""The file of an older run, which is read before torch is imported: measuring takes minutes, a wrong file none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FORMAT = 1


def older_run(path: Path) -> dict[str, Any]:
    """An older run.

    Raises
    ------
    ValueError
        If it is none, in one line.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--compare: can't read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"--compare: {path} is no JSON") from None
    if not isinstance(found, dict) or "vtc_speed" not in found:
        raise ValueError(f"--compare: {path} was not written by vtc speed --output")
    if found["vtc_speed"] != FORMAT:
        raise ValueError(
            f"--compare: {path} is of format {found['vtc_speed']!r}, this vtc reads {FORMAT}; measure anew"
        )
    return found
