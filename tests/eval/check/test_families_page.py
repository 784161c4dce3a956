"""docs/families-checked.md is what docs/families.json says, and that has every type that ``vtc check`` builds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

import vtc
from vtc.eval.check.prompts.build_prompts import KINDS


@pytest.fixture
def script() -> Any:
    spec = importlib.util.spec_from_file_location("families_page", ROOT / "benchmarks" / "families_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_record_says(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    script.write_page()
    assert (tmp_path / "page.md").read_text() == (ROOT / "docs" / "families-checked.md").read_text()


def test_every_type_and_method_was_run_and_nothing_was_wrong(script: Any) -> None:
    found = script.newest(json.loads(script.RECORD.read_text()))
    assert set(found) == set(KINDS)
    for kind, one in found.items():
        if "error" not in one:
            assert one["exit_code"] == 0 or kind == "qwen4_exp"
            assert sorted(one.get("methods", vtc.list_pruners())) == vtc.list_pruners()
