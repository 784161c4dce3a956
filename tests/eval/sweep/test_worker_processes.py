"""What is said when a worker process ends early: once, and in its own words."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from bench_world import save_data
from command_line import run
from plugin_files import bench

from vtc.eval.sweep.worker_processes import WorkerFailed, _Failure, ended

FAILING = """
import os, signal
from dataclasses import dataclass
import vtc

@vtc.register_pruner("failing")
@dataclass(kw_only=True)
class Failing(vtc.Pruner):
    stage = "input"

    def select(self, tokens, k):
        {what}
"""


def failure(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return _Failure.of(caught).error()


@pytest.mark.parametrize("kind", [ValueError, TypeError, NotImplementedError, OSError])
def test_errors_for_the_user_are_what_they_were(kind: type[Exception]):
    found = failure(kind("say it so"))
    assert (type(found), str(found)) == (kind, "say it so")


def test_a_full_disk_is_known_as_one():
    found = failure(OSError(errno.ENOSPC, "No space left on device", "results.jsonl"))
    assert isinstance(found, OSError)
    assert found.errno == errno.ENOSPC


def test_others_are_told_by_their_kind_and_words_with_the_traceback_behind():
    class Odd(Exception):
        def __init__(self, one: int, two: int):  # does not survive pickling
            super().__init__("odd one")

    for error, words in (
        (RuntimeError("size of tensor a"), "RuntimeError: size of tensor a"),
        (Odd(1, 2), "Odd: odd one"),
    ):
        found = failure(error)
        assert (type(found), str(found)) == (WorkerFailed, words)
        assert Path(__file__).name in str(found.__cause__)


def test_memory_is_spoken_of_only_where_a_signal_has_killed_it():
    assert "killed by SIGKILL; if memory ran out" in ended(-signal.SIGKILL)
    assert "killed by SIGSEGV" in ended(-signal.SIGSEGV)
    assert "memory" not in ended(1)
    assert "exit code 7" in ended(7)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of POSIX")
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("raise KeyError('no such thing')", "KeyError: 'no such thing' (my.py, line "),
        ("os.kill(os.getpid(), signal.SIGKILL)", "vtc: a worker process was killed by SIGKILL; if memory ran out"),
    ],
    ids=["raises", "killed"],
)
def test_the_command_says_it_in_one_line(place: Path, capfd: Any, what: str, words: str):
    Path("my.py").write_text(FAILING.format(what=what))
    data = save_data(place / "data", images=2)
    args = ("--import", "my.py", "--pruners", "failing", "--data", data, "--output", "out", "--workers", 2)
    code, _, err = run(capfd, *bench(*args), "--batch-size", 2)
    assert code == 2
    assert err.startswith("vtc: ")
    assert words in err
    assert err.count("\n") == 1, err
