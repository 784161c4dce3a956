"""``vtc bench``: what it writes, and that nothing is lost or computed twice."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bench_world import TOKENS, png, save_data, save_model, world
from PIL import Image
from result_rows import read_all
from rich.console import Console
from versions import TAKES_FEATURES

import vtc
from vtc.eval.bench import BenchOptions, run_bench
from vtc.eval.sweep import sweep_run as runner
from vtc.eval.sweep.chunks_and_batches import IMAGES_PER_CHUNK
from vtc.eval.sweep.plan import plan_cells
from vtc.eval.sweep.results_store import ResultStore, read_rows, result_files
from vtc.eval.tasks.questions import Question
from vtc.eval.tasks.reading.parquet_set import save_tasks
from vtc.pruners.registry import pruner_class
from vtc.pruners.trained.compressor import TrainedCompressor


def options(out: Path, **more: Any) -> BenchOptions:
    model, data = world()
    given: dict[str, Any] = {
        "data": data,
        "pruners": ["random", "fastv"],
        "keeps": [0.5, 3],
        "timing": 0,
        "max_new_tokens": 3,
        "seeds": 1,
        "random": False,
    }
    return BenchOptions(model=str(model), output=out, **{**given, **more})


def command(out: Path, data: Path) -> list[str]:
    model, _ = world()
    return [
        sys.executable, "-m", "vtc", "bench", "--model", str(model), "--data", str(data), "--output", str(out),
        "--pruners", "random,uniform", "--keep", "0.5,3", "--no-timing", "--batch-size", "2", "--max-new-tokens", "3",
        "--seeds", "1",
    ]  # fmt: skip


def rows_of(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["cell"], r["question_id"]): r for r in read_all(out / "results.jsonl")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("bench") / "results"
    return out, run_bench(options(out, timing=1))


def test_every_cell_answers_the_same_questions(finished):
    out, summary = finished
    rows = rows_of(out)
    cells = {cell for cell, _ in rows}
    assert cells == {"unpruned", "random(keep=0.5)", "random(keep=3)", "fastv(keep=0.5)", "fastv(keep=3)"}
    questions = {cell: {q for c, q in rows if c == cell} for cell in cells}
    assert len(questions["unpruned"]) == 18
    assert all(q == questions["unpruned"] for q in questions.values())
    assert all(cell.complete and cell.n == 18 for cell in summary)


def test_counts_and_costs_are_measured(finished):
    out, summary = finished
    by_spec = {cell.spec: cell for cell in summary}
    assert (by_spec["random(keep=0.5)"].tokens_asked, by_spec["random(keep=0.5)"].tokens_kept) == (8, 8)
    assert by_spec["fastv(keep=3)"].tokens_kept == 3
    assert by_spec["fastv(keep=3)"].tokens_per_layer == (2 * TOKENS + 2 * 3) / 4
    assert by_spec["random(keep=3)"].tokens_per_layer == 3
    assert by_spec["unpruned"].lm_flops_ratio == by_spec["unpruned"].kv_ratio == by_spec["unpruned"].flops_ratio == 1
    ratios = [by_spec[s] for s in ("random(keep=3)", "fastv(keep=3)", "unpruned")]
    assert ratios[0].lm_flops_ratio < ratios[1].lm_flops_ratio < ratios[2].lm_flops_ratio
    assert ratios[0].lm_flops_ratio < ratios[0].flops_ratio < 1
    assert all(cell.time.seconds > 0 for cell in summary)
    # the language model alone can be timed where a forward takes features that are there already
    assert all(cell.time.lm_ratio > 0 if TAKES_FEATURES else cell.time.lm_ratio is None for cell in summary)
    for cell in summary:
        cost = cell.cost
        assert cost.lm_flops + cost.head_flops == rows_of(out)[cell.spec, "i0-color-0"]["lm_flops"]
        assert cost.vision_flops > cost.projector_flops > 0
        assert all(s.low <= s.median <= s.high for s in (cost.prefill, cost.decode))
        assert cost.peak_memory > 1 << 20
        assert (cost.selection is None) == cell.is_unpruned
    row = rows_of(out)["fastv(keep=3)", "i0-color-0"]
    assert (row["visual_total"], row["visual_kept"], row["answer"]) == (TOKENS, 3, "red")


def test_differences_are_to_unpruned_and_paired(finished):
    out, summary = finished
    rows = rows_of(out)
    for cell in summary[1:]:
        gaps = {task: [] for task in cell.accuracy}
        for (spec, question), row in rows.items():
            if spec == cell.spec:
                gaps[row["task"]].append(row["score"] - rows["unpruned", question]["score"])
        wanted = sum(sum(g) / len(g) for g in gaps.values()) / len(gaps)
        assert cell.difference.value == pytest.approx(wanted)
        assert cell.difference.low <= cell.difference.value <= cell.difference.high
    assert summary[0].difference is None


def test_the_files(finished):
    out, summary = finished
    with open(out / "summary.csv") as file:
        table = list(csv.DictReader(file))
    assert [row["spec"] for row in table] == [cell.spec for cell in summary]
    assert float(table[1]["accuracy_mean"]) == pytest.approx(summary[1].mean.value)
    about = json.loads((out / "summary.json").read_text())
    assert about["versions"]["transformers"]
    assert about["hardware"]["threads"] >= 1
    assert about["data"]["questions"] == {"color": 6, "exist": 6, "count": 6}
    assert len(about["cells"]) == 5
    with Image.open(out / "pareto.png") as picture:
        assert picture.size[0] > 800
    assert sorted(p.name for p in out.iterdir()) == [
        "pareto.png", "report.html", "report.md", "results.jsonl", "second.jsonl", "summary.csv", "summary.json",
    ]  # fmt: skip


def test_a_second_run_computes_nothing_and_more_cells_only_theirs(finished, monkeypatch: pytest.MonkeyPatch):
    out, summary = finished
    asked: dict[str, None] = {}
    original = runner._answers

    def spy(sweep: Any, cell: Any, *rest: Any) -> Any:
        asked[cell.spec] = None
        return original(sweep, cell, *rest)

    monkeypatch.setattr(runner, "_answers", spy)
    before = (out / "results.jsonl").read_bytes()
    again = run_bench(options(out))
    assert not asked
    assert (out / "results.jsonl").read_bytes() == before
    assert [cell.mean for cell in again] == [cell.mean for cell in summary]
    run_bench(options(out, pruners=["random", "pool"], keeps=[3]))
    assert list(asked) == ["pool(keep=3)"]
    # another length of answers is another configuration
    asked.clear()
    run_bench(options(out, pruners=["random"], keeps=[3], max_new_tokens=2))
    assert list(asked) == ["unpruned", "random(keep=3)"]


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_resumed(workers: int, tmp_path: Path):
    data, out, whole = save_data(tmp_path / "data", images=12), tmp_path / "out", tmp_path / "whole"
    ask = [*command(out, data), "--workers", str(workers)]
    process = subprocess.Popen(ask, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(6000):
            if len(read_all(out / "results.jsonl")) > 20:
                break
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.wait()
    survived = {file: file.read_bytes() for file in result_files(out / "results.jsonl")}
    assert 20 < len(read_all(out / "results.jsonl")) < 5 * 72
    for file in survived:  # what a crash in the middle of a write leaves
        with open(file, "ab") as torn:
            torn.write(b'{"config": "torn')
    settings = {"pruners": ["random", "uniform"], "batch_size": 2, "data": data}
    resumed = run_bench(options(out, **settings))
    for file, data_before in survived.items():
        assert file.read_bytes().startswith(data_before[: data_before.rfind(b"\n") + 1])
    fresh = run_bench(options(whole, **settings))
    assert rows_of(out) == rows_of(whole)
    assert len(read_all(out / "results.jsonl")) == len(rows_of(out)), "nothing twice"
    assert [(c.spec, c.mean, c.difference) for c in resumed] == [(c.spec, c.mean, c.difference) for c in fresh]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_keeps_the_results(workers: int, tmp_path: Path):
    data, out = save_data(tmp_path / "data", images=24), tmp_path / "out"
    ask = [*command(out, data), "--workers", str(workers)]
    # a test run in the background ignores Ctrl-C, and so would its children
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(ask, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    while process.poll() is None and not read_rows(out / "results.jsonl")[0]:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert "the same command goes on from there" in stderr
    assert "Traceback" not in stderr
    assert {p.name for p in out.iterdir()} <= {"results.jsonl", "results-1.jsonl"}
    assert read_rows(out / "results.jsonl")[0]


def test_two_workers_find_what_one_does(tmp_path: Path):
    data = save_data(tmp_path / "data", images=2 * IMAGES_PER_CHUNK)
    settings = {"pruners": ["random", "fastv"], "keeps": [3], "data": data}
    alone = run_bench(options(tmp_path / "one", **settings))
    # half of it is there already
    rows = read_rows(tmp_path / "one" / "results.jsonl")[0]
    (tmp_path / "two").mkdir()
    half = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[::2])
    (tmp_path / "two" / "results.jsonl").write_text(half)
    shared = run_bench(options(tmp_path / "two", workers=2, **settings))
    assert (tmp_path / "two" / "results.jsonl").read_text().startswith(half)
    assert rows_of(tmp_path / "two") == rows_of(tmp_path / "one")
    assert len(read_all(tmp_path / "two" / "results.jsonl")) == len(rows)
    assert [(c.spec, c.mean, c.difference) for c in shared] == [(c.spec, c.mean, c.difference) for c in alone]


def test_a_broken_image_is_named_with_its_file_and_row(tmp_path: Path):
    pictures = {f"i{i}": png(i) for i in range(2 * IMAGES_PER_CHUNK)}
    pictures["i9"] = pictures["i9"][:100]
    questions = [Question(i, "t", i, "what is it?", "red") for i in pictures]
    data = save_tasks(tmp_path / "data", pictures, questions)
    with pytest.raises(ValueError, match=r"question i9: image i9 of data \(.*images\.parquet row 10\) cannot be read"):
        run_bench(options(tmp_path / "out", data=data, pruners=["random"], keeps=[3], workers=2))


def test_store_survives_torn_and_foreign_lines(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    good = {"config": "c", "cell": "x", "question_id": "q"}
    lines = [json.dumps(good), '{"config": "c", "cell": "x", "ques', json.dumps({**good, "config": "other"}), "[1]"]
    path.write_text("\n".join(lines) + '\n{"torn')
    with ResultStore(path, "c") as store:
        assert list(store.rows) == [("x", "q")]
        store.append([{"cell": "x", "question_id": "r"}])
    assert path.read_text().splitlines()[:4] == lines
    assert list(ResultStore(path, "c").rows) == [("x", "q"), ("x", "r")]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "results.jsonl"
    store = ResultStore(path, "c")
    store.append([{"cell": "x", "question_id": "q"}])
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.append([{"cell": "x", "question_id": "r"}])
    assert path.read_bytes() == before
    assert ("x", "r") not in store


def test_all_methods_run_and_what_can_not_is_told(tmp_path: Path):
    model = str(save_model(tmp_path / "model", "siglip"))
    settings = {"pruners": ["all", "random(layer=2)"], "keeps": [0.5, 3], "limit": 1, "max_new_tokens": 2}
    console = Console(width=120, record=True, file=io.StringIO())
    summary = run_bench(replace(options(tmp_path / "out", **settings), model=model), console)
    told = console.export_text()
    lines = [line for line in told.splitlines() if line.startswith("left out: ")]
    assert any("prumerge at 0.5, prumerge at 3, prumerge_plus at 0.5" in line and "class" in line for line in lines)
    assert any(line.startswith("left out: vtw at 3: vtw.keep=3 must be a fraction") for line in lines)
    # what has to be made for a model once is named
    trained = [name for name in vtc.list_pruners() if issubclass(pruner_class(name), TrainedCompressor)]
    for name in (*trained, "explainer"):
        assert any(f"{name} at 0.5" in line and f"vtc train {name}" in line for line in lines)
    assert any("embedlens at 0.5" in line and "vtc embedlens" in line for line in lines)
    left_out = json.loads((tmp_path / "out" / "summary.json").read_text())["left_out"]
    refusing = (*trained, "prumerge", "prumerge_plus", "explainer", "embedlens")
    refused = {(m, k) for m in refusing for k in (0.5, 3)} | {("vtw", 3), ("reroute", 3)}
    assert set(left_out) == {f"{m} at {k}" for m, k in refused}
    ran = {(cell.method, cell.keep) for cell in summary if cell.complete}
    wanted = {(name, keep) for name in ["downsample", *vtc.list_pruners(), "random(layer=2)"] for keep in (0.5, 3)}
    assert ran == wanted - refused | {("unpruned", None)}
    assert {cell.tokens_kept for cell in summary if cell.method == "vtw"} == {0}
    assert {cell.tokens_per_layer for cell in summary if cell.method == "vtw"} == {TOKENS / 2}
    # who asks for a method by its name is told why it can't run
    with pytest.raises(NotImplementedError, match="class"):
        run_bench(replace(options(tmp_path / "one", pruners=["prumerge"]), model=model))


def test_methods_that_say_what_they_keep_are_one_cell():
    plan = plan_cells(["prumerge(adaptive=True)", "vtw(layer=2)", "sparsevlm(budget=64)", "dart"], [0.5, 3])
    assert [(cell.method, cell.keep) for cell in plan.cells] == [
        ("unpruned", None), ("prumerge(adaptive=True)", 0.5), ("prumerge(adaptive=True)", 3), ("vtw(layer=2)", None),
        ("sparsevlm(budget=64)", None), ("dart", 0.5), ("dart", 3),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="must be a fraction"):
        plan_cells(["vtw"], [3])
    assert plan_cells(["dart", "all"], [0.5]).cells[1].method == "dart"
    # with the unpruned model, and smaller pictures
    assert len(plan_cells(["dart", "all"], [0.5]).cells) == 2 + len(vtc.list_pruners())


def test_another_command_in_the_same_folder_is_told_what_it_replaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def said(*arguments: str) -> bool:
        run_bench(options(tmp_path, pruners=["random"], keeps=[3], arguments=arguments))
        return "tables and report here are of `vtc bench one`" in capsys.readouterr().out

    assert not said("bench", "one")
    assert not said("bench", "one"), "the same command"
    assert said("bench", "two")
