"""Settings and fixtures that hold for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)  # tiny models: threads cost more than they give, and xdist uses the cores


@pytest.fixture
def no_grad() -> Iterator[None]:
    """Run the test without autograd."""
    with torch.no_grad():
        yield
