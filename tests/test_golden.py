"""The methods choose what the authors' code chose: every vector under tests/golden, and under ``VTC_GOLDEN_DIR``.

A vector is checked by the function in ``golden_cases/`` that claims its ``meta["method"]``; unclaimed ones fail.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from pathlib import Path

import golden_cases
import pytest
from golden_support import CLAIMS, Golden

for module in pkgutil.iter_modules(golden_cases.__path__):
    importlib.import_module(f"golden_cases.{module.name}")

WAITING = {"globalcom2", "globalcom2_negcos", "transprune", "tokencorr", "zerotprune", "embedlens"}
"""Methods of later work; their vectors are allowed to wait."""


def vectors() -> list[Path]:
    """Every vector."""
    folders = [Path(__file__).parent / "golden"]
    if os.environ.get("VTC_GOLDEN_DIR"):
        folders.append(Path(os.environ["VTC_GOLDEN_DIR"]))
    return sorted(path for folder in folders for path in folder.rglob("*.npz"))


def test_there_are_vectors():
    assert len(vectors()) >= 40


@pytest.mark.parametrize("path", vectors(), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_choice_equals_the_authors(path):
    vector = Golden.read(path)
    method = vector.meta["method"]
    check = CLAIMS.get(method)
    if check is None:
        if method in WAITING:
            pytest.skip(f"{method} is not there yet")
        pytest.fail(f"{path.name}: no function in golden_cases claims the method {method!r}")
    check(vector)


def test_nothing_waits_that_is_there():
    assert not WAITING & set(CLAIMS)
