"""YAML of unknown origin: recipes and task definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MOST = 100_000  # values: aliases of aliases say a billion of them in a few lines


def read_yaml(path: Path) -> Any:
    """What a file says.

    Raises
    ------
    ValueError
        In one line: it is no text, no YAML, nested so deep that Python gives up, or says more than ``MOST`` values.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{path} is not valid YAML: it is nested too deep") from None
    left, open_ = MOST, [found]
    while open_:
        value = open_.pop()
        left -= 1
        if left < 0:
            raise ValueError(f"{path} says more than {MOST:,} values: does an alias (*name) hold itself or others?")
        open_ += [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return found
