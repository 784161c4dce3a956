"""Several processes on one output folder: locks, claims, shards, launchers, kill -9; nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from bench_world import save_data, world
from result_rows import read_all

from vtc.commands.main import main
from vtc.eval.sweep.chunks_and_batches import turns
from vtc.eval.sweep.locks import NAME, Claims
from vtc.eval.sweep.results_store import ResultStore, read_rows, result_files
from vtc.eval.sweep.shell_commands import parse_shard, without
from vtc.eval.sweep.worker_processes import Rank

IMAGES, QUESTIONS = 24, 6 * 24
CELLS = 4  # unpruned, random, and uniform at two keeps: below
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    return [
        "bench", "--model", str(world()[0]), "--data", str(data), "--output", str(out), "--pruners", "uniform",
        "--keep", "0.5", "--no-timing", "--batch-size", "2", "--max-new-tokens", "3", "--seeds", "2", *more,
    ]  # fmt: skip


def start(given: list[str], **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vtc", *given]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**ALONE, **environment})


def answered(out: Path) -> dict[tuple[str, str], Any]:
    """Prediction of each answer; fails if one is there twice."""
    rows = read_all(out / "results.jsonl")
    count = Counter((r["cell"], r["question_id"]) for r in rows)
    assert set(count.values()) == {1}, "something was computed twice"
    return {(r["cell"], r["question_id"]): (r["prediction"], r["score"]) for r in rows}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_data(tmp_path_factory.mktemp("data") / "set", images=IMAGES)


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """What one process finds."""
    out = tmp_path_factory.mktemp("alone")
    with pytest.raises(SystemExit) as stop:
        main(arguments(data, out, "--workers", "1"))
    assert stop.value.code == 0
    found = answered(out)
    assert len(found) == CELLS * QUESTIONS
    return found


def test_two_processes_on_one_folder(data: Path, alone: dict[Any, Any], tmp_path: Path):
    both = [start(arguments(data, tmp_path, "--workers", "1")) for _ in range(2)]
    assert [p.wait() for p in both] == [0, 0], [p.stderr.read() for p in both if p.stderr]
    assert answered(tmp_path) == alone
    assert sorted(p.name for p in result_files(tmp_path / "results.jsonl")) == ["results-1.jsonl", "results.jsonl"]
    assert json.loads((tmp_path / "summary.json").read_text())["cells"][0]["complete"]
    assert not (tmp_path / NAME).exists()


def test_killed_beside_another_and_run_again(data: Path, alone: dict[Any, Any], tmp_path: Path):
    first, second = (start(arguments(data, tmp_path, "--workers", "1")) for _ in range(2))
    try:
        while not all(read_rows(p)[0] for p in (tmp_path / "results.jsonl", tmp_path / "results-1.jsonl")):
            assert first.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        second.send_signal(signal.SIGKILL)
    finally:
        first.wait()
        second.wait()
    before = answered(tmp_path)
    assert 0 < len(before) < len(alone)
    for file in result_files(tmp_path / "results.jsonl"):
        with open(file, "ab") as torn:
            torn.write(b'{"config": "to')
    again = [start(arguments(data, tmp_path, "--workers", "2")), start(arguments(data, tmp_path, "--workers", "1"))]
    assert [p.wait() for p in again] == [0, 0]
    found = answered(tmp_path)
    assert found == alone
    assert before.items() <= found.items()


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": [
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    ],
}  # fmt: skip


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_s_processes_share_the_samples(launcher: str, data: Path, alone: dict[Any, Any], tmp_path: Path):
    """The launchers themselves, which a machine without GPUs is enough for: vtc asks them for ranks only."""
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "vtc", *arguments(data, tmp_path, "--device", "cpu")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=ALONE)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Accuracy (%)") == 1, "one process reports"
    assert answered(tmp_path) == alone
    files = result_files(tmp_path / "results.jsonl")
    assert len(files) == 2
    assert all(read_rows(f)[0] for f in files), "both have answered"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert all(cell["complete"] for cell in summary["cells"])


def test_shards_and_emitted_commands_make_up_the_sweep(data: Path, alone: dict[Any, Any], tmp_path: Path):
    out, listed = tmp_path / "out", tmp_path / "cells.yaml"
    with pytest.raises(SystemExit) as stop:
        main(arguments(data, out, "--workers", "1", "--emit", str(listed)))
    assert stop.value.code == 0
    assert not out.exists()
    plan = yaml.safe_load(listed.read_text())
    assert [c["cell"] for c in plan["cells"]] == [
        "unpruned", "random(keep=0.5)", "random(keep=0.5, seed=1)", "uniform(keep=0.5)",
    ]  # fmt: skip
    import shlex

    def run(command: str, *more: str) -> None:
        with pytest.raises(SystemExit) as stop:
            main([*shlex.split(command)[1:], *more])
        assert stop.value.code == 0

    run(plan["cells"][1]["command"], "--shard", "2/3")
    found = answered(out)
    assert {cell for cell, _ in found} == {"random(keep=0.5)"}
    assert len(found) == QUESTIONS // 3
    assert not (out / "summary.json").exists()
    for _ in range(2):  # again at no harm
        for cell in plan["cells"][:3]:
            run(cell["command"])
        assert len(answered(out)) == 3 * QUESTIONS
    run(plan["merge"])
    assert answered(out) == alone
    assert (out / "report.html").exists()


HOLD = """if True:
    import sys, time
    from pathlib import Path
    from vtc.eval.sweep.locks import Claims
    claims = Claims(Path(sys.argv[1]))
    print(claims.take("part"), flush=True)
    time.sleep(600)
"""


def test_a_dead_process_holds_no_claim(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with Claims(tmp_path) as claims:
            assert claims.take("another part")
            assert not claims.take("part")
            other.kill()
            other.wait()
            assert claims.take("part")
            claims.give_back("part")
    assert not (tmp_path / NAME).exists()


def test_stores_read_one_another(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    with ResultStore(path, "c") as first, ResultStore(path, "c") as second:
        first.append([{"cell": "x", "question_id": "q"}])
        second.append([{"cell": "x", "question_id": "r"}])
        assert (first.file.name, second.file.name) == ("results.jsonl", "results-1.jsonl")
        assert ("x", "q") in second  # read when it took its file
        assert [row["question_id"] for row in first.refresh()] == ["r"]
        with open(second.file, "ab") as torn:  # half a line: another process is writing it
            torn.write(b'{"config": "c", "cell": "x", ')
        assert first.refresh() == []
        with open(second.file, "ab") as torn:
            torn.write(b'"question_id": "s"}\n')
        assert [row["question_id"] for row in first.refresh()] == ["s"]
    with ResultStore(path, "c") as third:
        third.open()
        assert third.file == path  # free again
        assert len(third.rows) == 3


@pytest.mark.parametrize("count", [1, 2, 7, 17])
def test_processes_start_apart_and_each_visits_everything(count: int):
    orders = [turns(count, number) for number in range(4)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert orders[0] == list(range(count))
    assert {order[0] for order in orders} == {0}
    if count == 17:
        assert [order[1] for order in orders] == [1, 9, 5, 13]


def test_what_a_launcher_says(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Rank.from_environment() == Rank(0, 1, 0)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Rank.from_environment() == Rank(3, 4, 3)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(ValueError, match="RANK=4 in the environment is out of range: WORLD_SIZE is 4"):
        Rank.from_environment()


def test_shards_are_read():
    assert parse_shard("2/4") == (2, 4)
    for wrong in ("0/4", "5/4", "2", "a/b", "2/"):
        with pytest.raises(ValueError, match="--shard must be i/n"):
            parse_shard(wrong)


def test_options_are_taken_out():
    given = ["bench", "--emit", "x.yaml", "--keep", "0.5", "--output=here", "--seeds", "2"]
    assert without(given, "--emit", "--output") == ["bench", "--keep", "0.5", "--seeds", "2"]
