"""The version, and those of what vtc runs on, readable without importing torch."""

from __future__ import annotations

import functools
import warnings
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"

_warned = False


@functools.cache
def installed(package: str) -> str:
    """The installed version of a package, ``"unknown"`` where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def versions() -> str:
    """What errors and ``vtc --version`` name: vtc, torch, transformers."""
    return f"vtc {__version__}, torch {installed('torch')}, transformers {installed('transformers')}"


def _release(text: str) -> tuple[int, ...]:
    """``"5.24.0.dev0"`` as (5, 24): what counts as another version."""
    parts = text.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()


def warn_untested() -> None:
    """Warn, once a process, if transformers is newer than what vtc was tested with."""
    global _warned
    if _warned:
        return
    from vtc.models.stock.transformers_api import TESTED
    from vtc.pruners.vtc_warning import VTCWarning

    found = installed("transformers")
    if _release(found) > max(map(_release, TESTED)):
        _warned = True
        warnings.warn(
            f"transformers {found} is newer than what vtc {__version__} was tested with ({', '.join(TESTED)})",
            VTCWarning,
            stacklevel=3,
        )
