"""The soak: that it finds every kind of fault, and that ``vtc serve`` has none (at length: ``benchmarks/soak.py``)."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from bench_world import world

from vtc.eval.load.soak.bad_requests import WHOLE, bad_request, png_of
from vtc.eval.load.soak.good_requests import Good, good_requests
from vtc.eval.load.soak.resident_memory import MemoryWatch, family, growth, resident, wait_until
from vtc.eval.load.soak.server_process import ServerProcess, free_port, vtc_serve
from vtc.eval.load.soak.soak_run import JSON, MARK, Soak, in_flight
from vtc.eval.tasks.reading.load import load_tasks

POOL = [Good({"model": "m", "messages": [{"role": "user", "content": f"q{i}"}]}) for i in range(3)]


@contextmanager
def stub(answer: Any) -> Iterator[str]:
    """A server that gives every body to `answer`, which gives a status and a text."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, text = answer(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def right(body: bytes) -> tuple[int, str]:
    """What a good server says: the question again, and 400 to what is none of the pool."""
    if body not in [good.data for good in POOL]:
        return 400, json.dumps({"error": {"message": "no"}})
    text = json.loads(body)["messages"][0]["content"]
    return 200, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})


def test_a_good_server_has_no_fault() -> None:
    with stub(right) as url:
        result = Soak(url, POOL).run(150, 8, 60)
    assert result.faults == []
    assert (result.good, result.bad, result.cut) == (135, 15, False)
    assert sum(counts.total() for counts in result.statuses.values()) == 15
    assert len(result.statuses) == 15  # every kind came by


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda status, text, n: (status, text.replace("q1", "q2")) if n > 3 else (status, text), "but alone"),
        (lambda status, text, n: (500, "{}") if status == 400 else (status, text), "HTTP 500"),
        (lambda status, text, n: (200, text) if status == 400 else (status, text), "HTTP 200"),
        (lambda status, text, n: (status, text + "mark99999") if n > 3 else (status, text), "sees another's text"),
        (lambda status, text, n: (status, "/srv/app/x.py") if status == 400 else (status, text), "tells of the"),
        (lambda status, text, n: (503, text) if n > 3 and status == 200 else (status, text), "HTTP 503"),
    ],
    ids=["another answer", "crash", "accepted", "leak", "trace", "not answered"],
)  # fmt: skip
def test_every_kind_of_fault_is_found(wrong: Any, words: str) -> None:
    count = 0

    def answer(body: bytes) -> tuple[int, str]:
        nonlocal count
        count += 1
        return wrong(*right(body), count)

    with stub(answer) as url:
        faults = Soak(url, POOL).run(40, 4, 60).faults
    assert any(words in fault for fault in faults)


def test_who_is_told_to_come_back_does() -> None:
    count = 0

    def answer(body: bytes) -> tuple[int, str]:
        nonlocal count
        count += 1
        return (429, "{}") if count > 3 and count % 5 == 0 else right(body)

    with stub(answer) as url:
        soak = Soak(url, POOL, strict=False)
        result = soak.run(20, 4, 60)
    assert result.faults == []
    assert result.came_back > 0


def test_time_ends_it() -> None:
    def answer(body: bytes) -> tuple[int, str]:
        time.sleep(0.05)
        return right(body)

    with stub(answer) as url:
        began = time.monotonic()
        result = Soak(url, POOL).run(10_000, 2, 0.5)
    assert time.monotonic() - began < 10
    assert result.cut
    assert result.done >= 4


def test_bad_requests_are_as_bad_as_they_say() -> None:
    tasks = load_tasks(world()[1])
    good = good_requests(tasks, "m", [{}], 1)[0]
    found = [bad_request(i, "mark00007", good) for i in range(15)]
    assert len({bad.kind for bad in found}) == 15
    whole = {bad.kind: bad.body for bad in found if bad.how == WHOLE}
    assert all(MARK.search(body.decode(errors="replace")) for body in whole.values())
    assert len(whole["an oversized body"]) > 20 << 20
    with pytest.raises(json.JSONDecodeError):
        json.loads(whole["no JSON"])
    assert png_of(30_000, 30_000)[16:24] == (30_000).to_bytes(4, "big") * 2


def test_the_pool_has_all_shapes() -> None:
    pool = good_requests(load_tasks(world()[1]), "m", [{}, {"vtc": {"keep": 4}}], 16)
    parts = [good.body["messages"][0]["content"] for good in pool]
    assert {sum(part["type"] == "image_url" for part in one) for one in parts} == {0, 1, 2}
    assert {len(good.body["messages"]) for good in pool} == {1, 3}
    assert {good.streamed for good in pool} == {True, False}
    assert sum("vtc" in good.body for good in pool) == 8
    assert len({good.data for good in pool}) == 16


def test_growth_is_from_the_second_quarter_to_the_last() -> None:
    samples = [(n, 100 if n < 25 else 200 if n < 50 else 205 if n < 75 else 220) for n in range(100)]
    assert growth(samples, 100) == pytest.approx(0.1)
    assert growth([(1, 100)], 100) is None
    assert growth([], 0) is None


def test_memory_is_that_of_the_process_and_its_children() -> None:
    child = "import time; x = bytearray(b'1') * (60 << 20); print('', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(family(process.pid)) == 2
        assert 60 << 20 < resident(process.pid) < 120 << 20
    finally:
        for pid in family(process.pid):
            subprocess.run(["kill", "-9", str(pid)], check=True)
        process.wait()
    assert resident(process.pid) == 0


def test_vtc_serve_stands_a_short_soak_and_a_kill(tmp_path: Path) -> None:
    model, data = world()
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    allow = ["--pruner", "dart", "--keep", "8", "--allow", "random,unpruned", "--queue", "40", "--name", "tiny"]
    server = ServerProcess(vtc_serve(port, [str(model), *allow, "--device", "cpu"]), url, tmp_path / "log")
    try:
        bodies: list[dict[str, Any]] = [{}, {"vtc": {"pruner": None}}, {"vtc": {"pruner": "random", "keep": 0.5}}]
        soak = Soak(url, good_requests(load_tasks(data), "tiny", bodies, 12), every=4)
        soak.alone = soak.ask_alone()
        with MemoryWatch(server.pid, lambda: soak.result.done) as watch:
            result = soak.run(60, 16, 60)
        assert result.faults == []
        assert (result.done, result.bad, len(result.statuses)) == (60, 15, 15)
        assert server.alive
        assert all(memory > 100 << 20 for _, memory in watch.samples)
        grew = growth(watch.samples, 60)
        assert grew is None or grew < 0.05
        assert wait_until(lambda: in_flight(url) == 0, 10)  # nobody who left holds a place
        ended: list[str] = []

        def ask() -> None:
            try:
                while True:
                    httpx.post(soak.path, content=soak.pool[0].data, headers=JSON, timeout=60, trust_env=False)
            except httpx.HTTPError as error:
                ended.append(type(error).__name__)

        clients = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
        for client in clients:
            client.start()
        time.sleep(0.2)
        server.kill()
        assert wait_until(lambda: len(ended) == 4, 10)
        assert "ReadTimeout" not in ended
        server.start()
        assert soak.ask_alone() == soak.alone
    finally:
        server.kill()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_server_that_does_not_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ended with exit code 3"):
        ServerProcess([sys.executable, "-c", "raise SystemExit(3)"], "http://127.0.0.1:9/v1", tmp_path / "log")
