"""The methods choose what the authors' code chose: every vector under tests/golden, and under ``VTC_GOLDEN_DIR``.

``VTC_GOLDEN_DIR`` is one folder or several (separated as in ``PATH``). A vector is checked by the function in
``golden_cases/`` that claims its ``meta["method"]``; unclaimed ones fail.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from pathlib import Path

import golden_cases
import pytest
from golden_support import Golden, claimant
from places import GOLDEN

for module in pkgutil.iter_modules(golden_cases.__path__):
    importlib.import_module(f"golden_cases.{module.name}")


def vectors(more: str = os.environ.get("VTC_GOLDEN_DIR", "")) -> list[Path]:
    """Every vector here and in `more` folders."""
    folders = [GOLDEN, *(Path(part) for part in more.split(os.pathsep) if part)]
    found = set()
    for folder in folders:
        here = set(folder.rglob("*.npz"))
        if not here:  # a wrong name must not look like success
            raise FileNotFoundError(f"VTC_GOLDEN_DIR: there is no folder {folder} with .npz files in it")
        found |= here
    return sorted(found)


def test_there_are_vectors():
    assert len(vectors()) >= 40


def test_folders_are_read_and_wrong_ones_refused(tmp_path):
    for place in ("one", "two/deeper"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / f"{Path(place).name}.npz").touch()
    more = os.pathsep.join([str(tmp_path / "one"), str(tmp_path / "two")])
    assert {path.name for path in set(vectors(more)) - set(vectors(""))} == {"one.npz", "deeper.npz"}
    with pytest.raises(FileNotFoundError, match=r"VTC_GOLDEN_DIR.*three"):
        vectors(str(tmp_path / "three"))


@pytest.mark.parametrize("path", vectors(), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_choice_equals_the_authors(path):
    vector = Golden.read(path)
    method = vector.meta["method"]
    check = claimant(method)
    if check is None:
        pytest.fail(f"{path.name}: no function in golden_cases claims the method {method!r}")
    check(vector)
