"""JSON of unknown origin, and files of it that a command of vtc should have written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """What `text` says.

    Raises
    ------
    ValueError
        If it is no JSON, or nested so deep that Python gives up.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def time_of(path: str, parameter: str, command: str) -> int:
    """When the file of a method's `parameter`, such as ``"hawk.weights"``, was last written, in nanoseconds.

    Raises
    ------
    FileNotFoundError
        If there is none; the message names the `command` that writes one.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{parameter}={path!r} is no file here; make one with '{command} --output'")
    return os.stat(path).st_mtime_ns


def parse_file(path: str, parameter: str, command: str, form: str) -> dict[str, Any]:
    """What the file of a method's `parameter` holds, as `command` writes it: its ``"format"`` is `form`.

    Raises
    ------
    ValueError
        If it is no JSON, or of another format.
    """
    try:
        found = parse_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{parameter}: {path!r} is no JSON file ({error})") from error
    if not isinstance(found, dict) or found.get("format") != form:
        raise ValueError(f"{parameter}: {path!r} was not written by '{command}' ({form})")
    return found
