"""Settings and fixtures that hold for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sampling
import torch
from hypothesis import settings
from zoo import FAMILIES

import vtc
from vtc.pruners import registry

# a machine under load is no failure; hypothesis draws the same examples everywhere, others with VTC_OTHER_EXAMPLES=1
settings.register_profile("vtc", deadline=None, derandomize=not os.environ.get("VTC_OTHER_EXAMPLES"))
settings.load_profile("vtc")

torch.set_num_threads(1)  # tiny models: threads cost more than they give, and xdist uses the cores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="all methods on all families, and not the share of a day")
    parser.addoption("--run", type=int, help="the share of this number, as the first lines of a run print it")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.run is None:  # told to every process of xdist, also around midnight
        config.option.run = sampling.today()


def _samples(config: pytest.Config) -> bool:
    """Whether a run takes a share: one that asks for certain tests takes those."""
    return not (config.option.full or config.option.keyword or any("::" in arg for arg in config.args))


def pytest_report_header(config: pytest.Config) -> str:
    if _samples(config):
        return f"methods x families: the share of run {config.option.run} (--run repeats it, --full takes all)"
    return "methods x families: all that are asked for"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _samples(config):
        items[:], left = sampling.split(items, config.option.run)
        config.hook.pytest_deselected(items=left)


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
        def _assign_work_unit(self, node: Any) -> None:
            first = next((scope for scope in sampling.LONG if scope in self.workqueue), None)
            if first is not None:
                self.workqueue.move_to_end(first, last=False)
            super()._assign_work_unit(node)

        def _split_scope(self, nodeid: str) -> str:
            file, _, rest = nodeid.partition("::")
            parts = rest.partition("[")[2].rstrip("]").split("-")
            return next((part for part in reversed(parts) if part in FAMILIES or part in sampling.TYPES), file)

    return ByFamily(config, log)
