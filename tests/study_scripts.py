"""Scripts of benchmarks/trained, imported as if they ran from their folder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from places import ROOT


def imported(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[Any]:
    """The script `name`; it and what it imports beside it are forgotten afterwards."""
    folder = ROOT / "benchmarks" / "trained"
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield importlib.import_module(name)
    for found in set(sys.modules) - before:
        if (getattr(sys.modules[found], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[found]
