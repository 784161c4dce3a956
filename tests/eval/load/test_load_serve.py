"""``vtc load-test`` against ``vtc serve`` with the bundled model, its limit measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run
from serving import running

import vtc.eval.load.measure_limit as measuring
from vtc.eval.load.targets import parse_target


def test_pruning_is_measured_beside_its_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "TURNS", 3)
    with running() as site:
        settings = {"full": {"vtc": {"pruner": None}}, "dart": {"vtc": {"pruner": "dart", "keep": 64}}}
        targets = [
            text
            for name, body in settings.items()
            for text in ("--target", f"{name} {site.url}/v1 body={json.dumps(body)}")
        ]
        code, out, err = run(
            capsys, "load-test", *targets, "--concurrency", "2", "--rounds", "2", "--requests", "4",
            "--measure-limit", "bundled", "--device", "cpu", "--output", tmp_path,
        )  # fmt: skip
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "summary.json").read_text())
    rows = {(row["target"], row["concurrency"]): row for row in found["figures"]}
    assert all(row["errors"] == {} for row in rows.values())
    assert found["served"]["full"]["engine"] == "vtc"
    gone = rows["full", 2]["prompt_tokens"] - rows["dart", 2]["prompt_tokens"]
    assert gone == pytest.approx(576 - 64, abs=3)  # questions of other rounds are longer or shorter
    limit = rows["dart", 2]["limit"]
    assert 0.1 < limit["tower_share"] < 0.9
    assert 0 <= limit["selection_share"] < 0.3
    assert 0.15 < limit["decoder_flops_ratio"] < 0.6  # 64 of 576 tokens behind layer 2 of 6
    assert 1 < limit["speed_up"] < 6
    assert rows["full", 2]["limit"] is None
    assert rows["dart", 2]["rate_ratio"]["value"] > 0.7
    assert "Limit of dart: v=" in out
    assert json.loads((tmp_path / "limits.json").read_text())["model"] == "bundled"


def test_a_limit_needs_the_method() -> None:
    body = json.dumps({"mm_processor_kwargs": {"vtc_keep": 64}})
    unknown = parse_target(f"a http://127.0.0.1:1/v1 body={body}")
    with pytest.raises(ValueError, match="the method must be known: say pruner=NAME keep=N"):
        measuring.cells_of([unknown])
    known = parse_target(f"a http://127.0.0.1:1/v1 pruner=divprune keep=64 body={body}")
    assert measuring.cells_of([known, parse_target("b http://127.0.0.1:1/v1")])["a"].spec == "divprune(keep=64)"
