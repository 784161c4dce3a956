"""Settings and fixtures that hold for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from zoo import FAMILIES

import vtc
from vtc.pruners import registry

# a machine under load is no failure; hypothesis draws the same examples everywhere, others with VTC_OTHER_EXAMPLES=1
settings.register_profile("vtc", deadline=None, derandomize=not os.environ.get("VTC_OTHER_EXAMPLES"))
settings.load_profile("vtc")

torch.set_num_threads(1)  # tiny models: threads cost more than they give, and xdist uses the cores


@pytest.fixture
def no_grad() -> Iterator[None]:
    """Run the test without autograd."""
    with torch.no_grad():
        yield


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, where methods may be registered: they are gone afterwards."""
    vtc.list_pruners()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(registry, "_IMPORTED", {})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Give all tests of a family to one process, so that what they share is computed once; else all of a file."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFamily(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, rest = nodeid.partition("::")
            parts = rest.partition("[")[2].rstrip("]").split("-")
            return next((part for part in reversed(parts) if part in FAMILIES), file)

    return ByFamily(config, log)
