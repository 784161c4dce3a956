"""A made-up sweep that several tests of the report look at."""

from __future__ import annotations

import pytest
from made_up_sweeps import METHODS, MadeUp, make_sweep

from vtc.eval.statistics.cell_summary import CellSummary


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    return make_sweep(tmp_path_factory.mktemp("sweep"), METHODS, images=120, layers={"same": 8})


@pytest.fixture(scope="module")
def cells(sweep: MadeUp) -> list[CellSummary]:
    return sweep.summarise()
