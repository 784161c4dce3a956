"""kill -9 at every kind of moment, and a disk that runs full: run again, and the results are those of one quiet run."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_world import save_data, world

from vtc.eval import bench
from vtc.eval.files.atomic import remove_drafts
from vtc.eval.files.output_folder import no_writing
from vtc.eval.sweep import results_store as store
from vtc.eval.sweep.locks import NAME, Claims
from vtc.eval.sweep.options import BenchOptions
from vtc.eval.sweep.results_store import ResultStore, result_files
from vtc.eval.vlm.loading import load_model

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")
FILES = ["pareto.png", "report.html", "report.md", "summary.csv", "summary.json"]


def forked(call: Callable[[], Any]) -> int:
    """Run `call` in a process of its own, which has the model already; returns its process id."""
    pid = os.fork()
    if pid == 0:
        import torch

        code = 1
        try:
            torch.set_num_threads(1)
            call()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """How it ended: its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_data(tmp_path_factory.mktemp("data") / "set", images=4)


@pytest.fixture(scope="module")
def sweep(data: Path) -> Callable[[Path], Any]:
    """A sweep into a folder, with a model that is loaded once for all of them."""
    loaded = load_model(str(world()[0]))

    def run(out: Path, **more: Any) -> Any:
        options = BenchOptions(
            model=str(world()[0]), data=data, output=out, pruners=["uniform", "fastv"], keeps=[3], timing=0, seeds=1,
            random=False, batch_size=4, max_new_tokens=3, **more,
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench, "load_model", lambda *_: loaded)
            return bench.run_bench(options)

    return run


@pytest.fixture(scope="module")
def quiet(sweep: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of an undisturbed run."""
    out = tmp_path_factory.mktemp("quiet")
    sweep(out)
    return lines_of(out)


def lines_of(out: Path) -> list[bytes]:
    """All whole lines, sorted."""
    found = [line for file in result_files(out / "results.jsonl") for line in file.read_bytes().split(b"\n")[:-1]]
    return sorted(found)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(moment: str, at: int, patch: pytest.MonkeyPatch) -> None:
    """Let this process be killed at the `at`-th such moment."""
    count = itertools.count(1)
    fsync, replace, take, append = os.fsync, os.replace, Claims.take, ResultStore.append
    safe = 0

    def writing(self: ResultStore, rows: Any) -> None:
        nonlocal safe
        self.open()
        safe = os.path.getsize(self.file)
        append(self, rows)

    def torn(file: int, missing: int) -> None:
        if next(count) == at:  # some of what was written has arrived; what was forced to the disk before is there
            os.ftruncate(file, max(safe, os.fstat(file).st_size - missing))
            die()
        fsync(file)

    def replacing(*paths: Any) -> None:
        if next(count) == at:
            die()
        replace(*paths)

    def taking(self: Claims, *given: Any) -> bool:
        taken = take(self, *given)
        if next(count) == at:
            die()
        return taken

    def appending(self: ResultStore, rows: Any) -> None:
        append(self, rows)
        if next(count) == at:
            die()

    if moment == "summary":
        patch.setattr(store.os, "replace", replacing)
    elif moment == "claimed":
        patch.setattr(Claims, "take", taking)
    elif moment == "written":
        patch.setattr(ResultStore, "append", appending)
    else:
        patch.setattr(ResultStore, "append", writing)
        patch.setattr(store.os, "fsync", lambda file: torn(file, {"torn": 37, "lines": 1500, "whole": 0}[moment]))


MOMENTS = [("claimed", 1), ("torn", 1), ("lines", 1), ("whole", 2), ("written", 3), ("claimed", 3), ("torn", 2)]
LAST = [("summary", 1), ("summary", 2), ("summary", 4)]


def test_one_process_killed_again_and_again(sweep: Any, quiet: list[bytes], tmp_path: Path):
    counts = []
    for moment, at in (*MOMENTS, *LAST):

        def dead(moment: str = moment, at: int = at) -> None:
            with pytest.MonkeyPatch.context() as patch:
                dying(moment, at, patch)
                sweep(tmp_path)

        assert ended(forked(dead)) == -signal.SIGKILL, (moment, at)
        assert set(lines_of(tmp_path)) <= set(quiet), (moment, at)
        counts.append(len(lines_of(tmp_path)))
    assert counts == sorted(counts), "nothing is lost"
    assert 0 < counts[len(MOMENTS) - 1] < len(quiet) == counts[-1]
    for draft in tmp_path.glob(".*.part"):
        os.utime(draft, (0, 0))
    sweep(tmp_path)
    assert lines_of(tmp_path) == quiet
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*FILES, "results.jsonl", "second.jsonl"])


@pytest.mark.parametrize("moment", MOMENTS)
def test_one_of_two_processes_killed(moment: tuple[str, int], sweep: Any, quiet: list[bytes], tmp_path: Path):
    def dead() -> None:
        with pytest.MonkeyPatch.context() as patch:
            dying(*moment, patch)
            sweep(tmp_path)

    first, second = forked(dead), forked(lambda: sweep(tmp_path))
    assert ended(first) in (-signal.SIGKILL, 0)  # 0: the other had done its part before the moment came
    assert ended(second) == 0, "the other one goes on to the end"
    whole = [line for line in lines_of(tmp_path) if line.endswith(b"}")]
    assert whole == quiet
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert all(cell["complete"] for cell in summary["cells"])


def test_both_processes_killed_and_two_run_again(sweep: Any, quiet: list[bytes], tmp_path: Path):
    for moment, at in (("torn", 2), ("written", 1), ("claimed", 2)):

        def dead(moment: str = moment, at: int = at) -> None:
            with pytest.MonkeyPatch.context() as patch:
                dying(moment, at, patch)
                sweep(tmp_path)

        assert [ended(pid) for pid in [forked(dead), forked(dead)]] == [-signal.SIGKILL] * 2
    assert 0 < len(lines_of(tmp_path)) < len(quiet)
    again = [forked(lambda: sweep(tmp_path)) for _ in range(2)]
    assert [ended(pid) for pid in again] == [0, 0]
    assert lines_of(tmp_path) == quiet
    assert not (tmp_path / NAME).exists()


def test_a_limit_on_files_stops_the_sweep_and_results_stay_whole(sweep: Any, quiet: list[bytes], tmp_path: Path):
    """The system refuses to write on, in the middle of a line."""
    said = tmp_path / "said"
    out = tmp_path / "out"

    def limited(size: int) -> Callable[[], None]:
        def call() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            with pytest.raises(ValueError, match="can't write to") as told:
                sweep(out)
            said.write_text(str(told.value))

        return call

    size = sum(map(len, quiet)) // 3
    assert ended(forked(limited(size))) == 0
    assert (
        said.read_text() == f"can't write to {out}: File too large; what was finished is kept, the same command resumes"
    )
    kept = (out / "results.jsonl").read_bytes()
    assert 0 < len(kept) <= size
    assert kept.endswith(b"}\n")
    assert set(lines_of(out)) < set(quiet)
    assert [p.name for p in out.iterdir()] == ["results.jsonl"]
    # room for the results, not for all of the report
    assert ended(forked(limited(sum(map(len, quiet)) + 5000))) == 0
    assert lines_of(out) == quiet
    assert "report.html" not in {p.name for p in out.iterdir()}
    assert not list(out.glob(".*.part"))
    sweep(out)
    assert lines_of(out) == quiet
    assert (out / "report.html").exists()


def test_a_full_disk_is_called_so():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "can't write to out: the disk is full; what was finished is kept" in str(no_writing(Path("out"), full))


def test_drafts_of_dead_processes_go_and_fresh_ones_stay(tmp_path: Path):
    for name, age in ((".summary.csv.1.part", 0), (".summary.csv.2.part", 100), ("results.jsonl", 100)):
        (tmp_path / name).write_text("x")
        if age:
            os.utime(tmp_path / name, (0, 0))
    remove_drafts(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".summary.csv.1.part", "results.jsonl"}
