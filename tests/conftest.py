"""Settings and fixtures that hold for every test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings
from zoo import FAMILIES

# a machine under load is no failure
settings.register_profile("vtc", deadline=None)
settings.load_profile("vtc")

torch.set_num_threads(1)  # tiny models: threads cost more than they give, and xdist uses the cores


@pytest.fixture
def no_grad() -> Iterator[None]:
    """Run the test without autograd."""
    with torch.no_grad():
        yield


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
