"""The files beside the page: Markdown, CSV and JSON, complete and as docs/results.md says."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from made_up_sweeps import ABOUT, METHODS, MadeUp, make_sweep
from PIL import Image
from places import ROOT
from rich.console import Console

from vtc.eval.reports.html import write_report
from vtc.eval.reports.pareto_plot import COLOURS, draw_pareto
from vtc.eval.reports.screen_tables import verdict_table
from vtc.eval.reports.summary_files import write_csv, write_json
from vtc.eval.reports.wording import numbers_in_words as words
from vtc.eval.statistics.cell_summary import CellSummary
from vtc.eval.statistics.intervals import Interval

DOC = (ROOT / "docs" / "results.md").read_text()


def test_the_files(sweep: MadeUp, cells: list[CellSummary], tmp_path: Path):
    write_report(tmp_path, cells, ABOUT, sweep.tasks, sweep.rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.md"]
    assert (tmp_path / "report.html").stat().st_size < 2**20
    markdown = (tmp_path / "report.md").read_text()
    good = next(c for c in cells if c.method == "good")
    assert f"{words.percent(good.mean.value)} {words.ends(good.mean, sign=False)}" in markdown
    assert "    vtc bench --pruners 'random,good'" in markdown
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table


def test_the_json_has_everything_and_no_nan(sweep: MadeUp, cells: list[CellSummary], tmp_path: Path):
    odd = replace(cells[1], mean=Interval(float("nan"), float("nan"), float("inf")))
    write_json(tmp_path / "summary.json", [*cells, odd], ABOUT)

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    found = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert {k: v for k, v in found.items() if k != "cells"} == ABOUT
    assert all(set(row) == {f.name for f in fields(CellSummary)} for row in found["cells"])
    assert found["cells"][-1]["mean"] == {"value": None, "low": None, "high": None}
    good = next(c for c in cells if c.method == "good")
    row = next(row for row in found["cells"] if row["spec"] == good.spec)
    assert row["difference"] == good.difference._asdict()
    assert row["difference_by_task"]["pope"] == good.difference_by_task["pope"]._asdict()
    assert row["cost"]["prefill"] == good.cost.prefill._asdict()
    assert row["time"]["ratio"] == good.time.ratio
    assert row["specs"] == list(good.specs)


def test_the_csv_has_a_line_per_cell(cells: list[CellSummary], tmp_path: Path):
    write_csv(tmp_path / "summary.csv", cells)
    with open(tmp_path / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["spec"] for row in rows] == [c.spec for c in cells]
    for row, c in zip(rows, cells, strict=True):
        assert float(row["accuracy_mean"]) == c.mean.value
        assert row["verdict"] == c.verdict
        assert (row["p_holm"] == "") == (c.p_holm is None)
        assert float(row["cost_prefill_seconds_high"]) == c.cost.prefill.high
    assert rows[1]["seeds"] == "3"


@pytest.mark.parametrize(
    ("spec", "trained"),
    [("quecc(keep=16, weights='made.safetensors')", True), ("uniform(keep=0.5) + tokenflex(keep=9)", True),
     ("pmod(weights='untrained')", False), ("dart(keep=64)", False), ("of_my_own(keep=3)", False)],
)  # fmt: skip
def test_rows_say_that_a_method_is_trained(
    sweep: MadeUp, cells: list[CellSummary], tmp_path: Path, spec: str, trained: bool
) -> None:
    shown = [replace(c, spec=spec) if c.method == "good" else c for c in cells]
    assert [c.is_trained for c in shown] == [trained and c.method == "good" for c in shown]
    write_report(tmp_path, shown, ABOUT, sweep.tasks, sweep.rows)
    assert ("| good (trained) |" in (tmp_path / "report.md").read_text()) is trained
    assert ("<small>trained</small>" in (tmp_path / "report.html").read_text()) is trained
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(verdict_table(shown, 100, 200))
    assert ("good (trained)" in console.export_text()) is trained
    assert all(c.flat()["trained"] is c.is_trained for c in shown)


def test_every_column_is_explained(cells: list[CellSummary]):
    table = DOC.split("## `summary.csv`")[1]
    lines = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    said_csv = {name for line in lines for name in re.findall("`([^`]+)`", line[1])}
    said_json = {name for line in lines for name in re.findall("`([^`]+)`", line[1 if "the same" in line[2] else 2])}
    written = {name for c in cells for name in c.flat()}
    plain = {re.sub("_(low|high)$", "", name) for name in written} - {"accuracy"}
    plain = {re.sub("^accuracy_(pope|gqa)$", "accuracy_TASK", name) for name in plain}
    plain = {re.sub("^(pope|gqa)_.*$", "TASK_NAME", name) for name in plain}
    assert plain == said_csv
    assert {f.name for f in fields(CellSummary)} == said_json
    for name in ABOUT:
        assert f"`{name}`" in DOC


@pytest.mark.parametrize("text", ["a\ud800b", "a\x00b", "\u202eabc"])
def test_odd_characters_in_answers_can_be_written(text: str, sweep: MadeUp, cells: list[CellSummary], tmp_path: Path):
    write_report(tmp_path, cells, ABOUT | {"model": text}, sweep.tasks, [r | {"prediction": text} for r in sweep.rows])
    assert "a" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("methods", "flops", "colours"),
    [(METHODS, True, 3), ({f"m{i}": i / 50 for i in range(12)}, False, 7), ({}, True, 0)],
)
def test_the_plot_colours_the_best(methods: dict[str, float], flops: bool, colours: int, tmp_path: Path):
    sweep = make_sweep(tmp_path, methods, images=20, flops=flops)
    draw_pareto(sweep.summarise(reps=50), tmp_path / "pareto.png", "made up")
    with Image.open(tmp_path / "pareto.png") as picture:
        found = {f"#{r:02X}{g:02X}{b:02X}" for _, (r, g, b) in picture.convert("RGB").getcolors(1 << 24)}
    assert [colour in found for colour in COLOURS] == [True] * colours + [False] * (len(COLOURS) - colours)
