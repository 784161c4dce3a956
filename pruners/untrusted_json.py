"""JSON of unknown origin."""

from __future__ import annotations

import json
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
