"""Versions: which are named, and the one warning of a transformers that nobody has tried."""

from __future__ import annotations

import warnings

import pytest
from zoo import tiny

import vtc
from vtc import version
from vtc.models.stock.transformers_api import TESTED


@pytest.mark.parametrize(
    ("found", "warned"),
    [
        ("5.99.0", True),
        ("6.0.0.dev0", True),
        (max(TESTED, key=version._release), False),
        (TESTED[0], False),
        ("5.5.7", False),
        ("unknown", False),
    ],
)
def test_a_transformers_newer_than_tested_warns_once(monkeypatch: pytest.MonkeyPatch, found: str, warned: bool):
    monkeypatch.setattr(version, "_warned", False)
    monkeypatch.setattr(version, "installed", lambda package: found)
    model = tiny("llava")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for keep in (3, 4):
            with vtc.compressed(model, "uniform", keep=keep):
                pass
    mine = [str(w.message) for w in told if issubclass(w.category, vtc.VTCWarning)]
    newer = f"transformers {found} is newer than what vtc {vtc.__version__} was tested with ({', '.join(TESTED)})"
    assert mine == [newer] * warned


def test_the_newest_tested_one_is_by_number_not_by_letters():
    assert version._release("5.24.0") > version._release("5.5.0")
    assert version._release("5.24.0") == version._release("5.24.1.dev0") == (5, 24)
