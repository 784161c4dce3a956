"""``vtc load-test`` against a server of known delays: what it measures, how it resumes, what it refuses."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench_world import world
from command_line import run
from fake_openai import FakeServer, fake_server
from PIL import Image

from vtc.eval.load.closed_loop import run_block
from vtc.eval.load.load_job import run_load_test
from vtc.eval.load.one_request import Outcome
from vtc.eval.load.options import LoadOptions
from vtc.eval.load.run_files import RunFiles
from vtc.eval.load.schedule import Block
from vtc.eval.load.targets import Target, make_target
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.terminal.console import make_console

SLOW = {"ttft": 0.08, "gap": 0.02, "tokens": 3}
FAST = {"ttft": 0.03, "gap": 0.01, "tokens": 3, "prompt": 50}


def target(name: str, server: FakeServer, fake: dict[str, Any], **more: Any) -> Target:
    return make_target({"name": name, "url": server.url, "body": {"fake": fake}, **more}, name)


def measure(folder: Path, *targets: Target, **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"concurrencies": (1, 4), "rounds": 2, "requests": 4, **more}
    options = LoadOptions(targets=targets, **given)
    return run_load_test(options, folder, load_tasks(world()[1]), make_console())


def by_name(result: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["target"], row["concurrency"]): row for row in result["figures"]}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


LATE = 0.1  # seconds that a busy machine may add to a delay


def test_known_delays_are_measured(tmp_path: Path) -> None:
    with fake_server() as server:
        slow = target("slow", server, SLOW, limit={"v": 0.1, "s": 0.0, "f": 0.3})
        found = by_name(measure(tmp_path / "out", target("fast", server, FAST), slow, baseline="slow"))
        assert server.most_in_flight == 4
    for (name, level), row in found.items():
        delays = {"slow": SLOW, "fast": FAST}[name]
        whole = delays["ttft"] + 2 * delays["gap"]
        assert delays["ttft"] <= row["ttft_50"]["value"] < delays["ttft"] + LATE
        assert 0.9 * delays["gap"] <= row["gap_50"]["value"] < delays["gap"] + LATE
        assert 0.9 * delays["gap"] <= row["per_token"] < delays["gap"] + LATE
        assert level / (whole + 3 * LATE) < row["rate"]["value"] <= level / whole
        assert row["ttft_50"]["low"] <= row["ttft_50"]["value"] <= row["ttft_50"]["high"] <= row["ttft_99"]["high"]
        assert (row["sent"], row["ok"], row["errors"]) == (2 * max(4, 4 * level), 2 * max(4, 4 * level), {})
        assert row["completion_tokens"] == 3
    fast = found["fast", 1]
    assert 1.2 < fast["rate_ratio"]["value"] < 2.6  # 0.12 s over 0.05 s, less what the client itself takes
    assert 1.2 < fast["ttft_ratio"]["value"] < 2.9
    assert fast["limit"] is None
    assert found["slow", 1]["rate_ratio"] is None
    table = (tmp_path / "out" / "summary.md").read_text()
    assert "| fast | 4 |" in table
    assert table.count("| 0 of ") == 4


def test_the_limit_stands_beside_the_ratio(tmp_path: Path) -> None:
    with fake_server() as server:
        fast = target("fast", server, FAST, limit={"v": 0.2, "s": 0.0, "f": 0.25}, pruner="dart", keep=64)
        result = measure(tmp_path / "out", target("slow", server, SLOW), fast, concurrencies=(1,))
    row = by_name(result)["fast", 1]
    assert row["limit"]["speed_up"] == pytest.approx(2.5)
    assert row["rate_of_limit"] == pytest.approx(row["rate_ratio"]["value"] / 2.5)
    assert "| 2.50x |" in (tmp_path / "out" / "summary.md").read_text()
    assert any("the limit is of the prefill" in line for line in result["remarks"])


def test_a_slower_server_is_said_not_to_pay(tmp_path: Path) -> None:
    with fake_server() as server:
        pruned = target("pruned", server, {**SLOW, "prompt": 50}, pruner="dart", keep=64)
        plain = target("plain", server, {**FAST, "prompt": 100})
        said = measure(tmp_path / "out", plain, pruned, concurrencies=(1,))["remarks"]
    assert any("pruned at concurrency 1" in line and "pruning does not pay here" in line for line in said)


def pictures(server: FakeServer) -> list[bytes]:
    found = []
    for body in server.bodies:
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        found.append(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).tobytes())
    return found


def test_no_picture_comes_twice_and_targets_get_the_same_questions(tmp_path: Path) -> None:
    with fake_server() as server:
        measure(tmp_path / "out", target("a", server, {}), target("b", server, {"x": 1}), rounds=3)
        seen = pictures(server)
        assert len(set(seen)) == len(seen) == 2 * (4 + 4 + 3 * (4 + 16))
        asked: dict[bool, list[str]] = {False: [], True: []}
        for body in server.bodies:
            asked["x" in body["fake"]].append(body["messages"][0]["content"][1]["text"])
        assert sorted(asked[False]) == sorted(asked[True])
        before = len(server.bodies)
        measure(tmp_path / "again", target("a", server, {}), rounds=1)
        assert not {*seen} & {*pictures(server)[before:]}  # nor of an earlier run
        before = len(server.bodies)
        measure(tmp_path / "same", target("a", server, {}), rounds=1, same_pictures=True)
        assert len({*pictures(server)[before:]}) == 1
        before = len(server.bodies)
        measure(tmp_path / "small", target("a", server, {}, resize=0.25), rounds=1, picture_side=64)
        url = server.bodies[before]["messages"][0]["content"][0]["image_url"]["url"]
        assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size == (32, 32)


def test_answers_are_of_one_length_where_the_server_can(tmp_path: Path) -> None:
    for owner, fixed in (("vllm", True), ("vtc", True), ("another", False)):
        with fake_server(owner=owner) as server:
            result = measure(tmp_path / owner, target("a", server, {}), rounds=1, output_tokens=7)
            assert {body.get("ignore_eos") for body in server.bodies} == {True if fixed else None}
            assert {body["max_tokens"] for body in server.bodies} == {7}
        assert result["served"]["a"] == {"model": "m", "engine": owner, "fixed_length": fixed}


def test_dropped_visual_tokens_are_no_prompt_tokens(tmp_path: Path) -> None:
    usage = {"vtc": {"visual_tokens_seen": 64, "visual_tokens_kept": 16}}
    with fake_server() as server:
        result = measure(tmp_path / "out", target("a", server, {"usage": usage}), rounds=1, concurrencies=(1,))
    assert result["figures"][0]["prompt_tokens"] == 52


def test_the_same_command_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = RunFiles.request, []

    def stop(self: RunFiles, block: Block, *rest: Any) -> None:
        real(self, block, *rest)
        calls.append(block)
        if block.round == 2 and calls.count(block) == 2:
            raise KeyboardInterrupt

    with fake_server() as server:
        sides = target("a", server, {}), target("b", server, {"tokens": 2})
        monkeypatch.setattr(RunFiles, "request", stop)
        with pytest.raises(KeyboardInterrupt):
            measure(tmp_path / "out", *sides)
        before = lines(tmp_path / "out" / "blocks.jsonl")
        assert {row["round"] for row in before} == {0, 1}
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert {row["rounds"] for row in summary["figures"]} == {1}
        with open(tmp_path / "out" / "requests.jsonl", "a") as file:
            file.write('{"target": "a", "torn')  # as a kill leaves it
        monkeypatch.setattr(RunFiles, "request", real)
        found = by_name(measure(tmp_path / "out", *sides))
        assert {row["rounds"] for row in found.values()} == {2}
        assert {(key[1], row["sent"]) for key, row in found.items()} == {(1, 8), (4, 32)}
        after = lines(tmp_path / "out" / "blocks.jsonl")
        assert after[: len(before)] == before
        assert not {row["attempt"] for row in after if row["round"] == 1} - {row["attempt"] for row in before}
        count = len(server.bodies)
        again = measure(tmp_path / "out", *sides)
        assert len(server.bodies) == count  # all is there
        assert by_name(again) == found
        more = measure(tmp_path / "out", *sides, rounds=3)
        assert {row["rounds"] for row in more["figures"]} == {3}
        with pytest.raises(ValueError, match="holds a load test with another requests"):
            measure(tmp_path / "out", *sides, requests=5)


def test_a_killed_process_leaves_whole_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with fake_server() as server:
        body = json.dumps({"fake": {"ttft": 0.02}})
        command = ["load-test", "--target", f"a {server.url} body={body}", "--concurrency", "2", "--rounds", "40",
                   "--requests", "4", "--data", str(world()[1]), "--output", str(out)]  # fmt: skip
        process = subprocess.Popen([sys.executable, "-m", "vtc", *command], env={**os.environ, "OMP_NUM_THREADS": "1"})
        end = time.monotonic() + 60
        while not (out / "blocks.jsonl").exists() or len(lines(out / "blocks.jsonl")) < 3:
            assert time.monotonic() < end
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kept = len(lines(out / "blocks.jsonl"))
        result = measure(out, target("a", server, {"ttft": 0.02}), concurrencies=(2,), rounds=kept + 1, data=world()[1])
    assert result["figures"][0]["rounds"] == kept + 1


def test_time_bounds_a_block_a_request_and_the_run(tmp_path: Path) -> None:
    with fake_server() as server:
        slow = target("a", server, {"ttft": 0.1, "tokens": 1})
        row = measure(tmp_path / "b", slow, rounds=1, concurrencies=(1,), requests=50, block_seconds=0.35)
        assert 2 <= row["figures"][0]["sent"] <= 4
        assert any("cut short by --block-seconds" in line for line in row["remarks"])
        began = time.monotonic()
        result = measure(tmp_path / "m", slow, rounds=50, concurrencies=(1,), minutes=0.02)
        assert time.monotonic() - began < 4
        assert 1 <= result["figures"][0]["rounds"] < 5


@pytest.mark.parametrize(
    ("fake", "words"),
    [
        ({"status": 400, "words": "keep=9 is\nout of range"}, "HTTP 400: keep=9 is out of range"),
        ({"status": 429}, r"HTTP 429: no \(vtc serve --queue"),
        ({"status": 500}, "HTTP 500"),
        ({"cut": True}, r"cut off: the stream ended before \[DONE\]"),
        ({"event": True}, "stream: broken inside"),
        ({"hang": True}, "timeout: no end within 0.2 s"),
    ],
)
def test_a_server_that_mostly_fails_is_not_measured(fake: dict[str, Any], words: str, tmp_path: Path) -> None:
    with fake_server() as server, pytest.raises(ValueError, match=f"4 of 4 requests of the warm-up failed: {words}"):
        measure(tmp_path / "out", target("a", server, fake), request_seconds=0.2)


def test_single_failures_are_counted_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vtc.eval.load.closed_loop as loop

    real, count = loop.ask, 0

    async def ask(*given: Any) -> Outcome:
        nonlocal count
        count += 1
        found = await real(*given)
        return Outcome(error="HTTP 503: busy", seconds=0.01) if count % 8 == 0 else found

    monkeypatch.setattr(loop, "ask", ask)
    with fake_server() as server:
        result = measure(tmp_path / "out", target("a", server, {}), concurrencies=(4,))
    row = result["figures"][0]
    assert (row["sent"], row["ok"], row["errors"]) == (32, 28, {"HTTP 503": 4})
    assert any("4 of 32 requests failed (HTTP 503: busy)" in line for line in result["remarks"])


def test_servers_that_are_not_there_or_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(text: str, *more: str) -> str:
        folders = "--output", tmp_path / "o", "--data", world()[1]
        code, _, err = run(capsys, "load-test", "--target", text, *folders, *more)
        assert code == 2
        assert err.count("\n") == 1
        return err

    assert "no server answers at http://127.0.0.1:9/v1" in said("a http://127.0.0.1:9/v1")
    with fake_server(key="k") as server:
        assert "HTTP 401: who are you?; key=VARIABLE names" in said(f"a {server.url}")
    with fake_server(models=("m", "n")) as server:
        assert "serves no 'x', but m, n" in said(f"a {server.url} model=x")
        assert "lists no model (HTTP 404)" in said(f"a {server.url.removesuffix('/v1')}")
    assert not (tmp_path / "o").exists()


def test_a_block_keeps_as_many_in_flight_as_it_says() -> None:
    body = json.dumps({"fake": {"ttft": 0.05, "tokens": 1}}).encode()
    for serial, seconds in ((False, 0.1), (True, 0.4)):
        with fake_server(serial=serial) as server:
            sent = asyncio.run(run_block(server.url, [body] * 8, {}, 4, 60, 60))
            assert server.most_in_flight == 4
        assert seconds <= sent.seconds < seconds + 0.15
        assert statistics.median(one.ttft or 0 for one in sent.outcomes) >= (0.05 if not serial else 0.15)
