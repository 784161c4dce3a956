"""A server under load for long: ``python benchmarks/soak.py``.

A thousand requests, 16 at a time, one in ten broken, oversized or from a client who leaves. What has to hold: no crash
and no 5xx, every good request answered as by itself before, nothing of one request in another's answer, memory within
5% after the first quarter, no place held by those who left, and after ``kill -9`` in the middle of work clients are
told at once and a server started again answers the same.

Without options it starts ``vtc serve`` with the bundled model. ``--start`` and ``--url`` take any other server:
``--start "python -m vllm.entrypoints.openai.api_server --model M --port 8000" --url http://127.0.0.1:8000/v1
--body '{"mm_processor_kwargs": {"vtc_keep": 64}}' --lenient``. ``--url`` alone takes one that runs (no memory without
``--pid``, no kill).
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from vtc.bundled_files import bundled_data
from vtc.eval.load.addresses import check_reach
from vtc.eval.load.served_model import look
from vtc.eval.load.soak.good_requests import good_requests
from vtc.eval.load.soak.resident_memory import MemoryWatch, growth, wait_until
from vtc.eval.load.soak.server_process import ServerProcess, free_port, vtc_serve
from vtc.eval.load.soak.soak_run import JSON, Soak, SoakResult, about, in_flight
from vtc.eval.load.targets import Target
from vtc.eval.tasks.reading.load import load_tasks

FLAT = 0.05
VTC_BODIES: list[dict[str, Any]] = [
    {},
    {"vtc": {"pruner": None}},
    {"vtc": {"keep": 32}},
    {"vtc": {"pruner": "random", "keep": 0.25}},
]


def parse_arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=20.0, help="no more requests are sent after this time")
    parser.add_argument("--pool", type=int, default=32, help="different good requests")
    parser.add_argument("--url", help="base of another server, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--start", help="command that starts it")
    parser.add_argument("--pid", type=int, help="of a server that runs already, for its memory")
    parser.add_argument("--model", help="what requests call the model")
    parser.add_argument("--body", action="append", type=json.loads, help="added to good requests in turn, JSON")
    parser.add_argument("--lenient", action="store_true", help="a bad request may be answered, but by no 5xx")
    parser.add_argument("--known", action="append", default=[], help="a kind of bad request whose 5xx is no fault")
    parser.add_argument("--serve", default="", help="options of vtc serve")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    return parser.parse_args()


def killed(server: ServerProcess, soak: Soak) -> list[str]:
    """Kill -9 the server at work and start it again; what was wrong."""
    faults, ended = [], []

    def ask(i: int) -> None:
        good = soak.pool[i % len(soak.pool)]
        try:
            while True:
                httpx.post(soak.path, content=good.data, headers=JSON, timeout=60, trust_env=False)
        except httpx.HTTPError as error:
            ended.append(type(error).__name__)

    clients = [threading.Thread(target=ask, args=[i], daemon=True) for i in range(8)]
    for client in clients:
        client.start()
    time.sleep(2)
    server.kill()
    if not wait_until(lambda: len(ended) == len(clients), 10):
        faults.append(f"after kill -9 {len(clients) - len(ended)} of {len(clients)} clients were left waiting")
    if "ReadTimeout" in ended:
        faults.append("after kill -9 a client ran into its own time limit")
    server.start()
    if soak.ask_alone() != soak.alone:
        faults.append("started again after kill -9 it answers otherwise")
    return faults


def report(result: SoakResult, samples: list[tuple[int, int]], options: argparse.Namespace) -> float | None:
    """Print what the load showed; by how much memory grew."""
    grew = growth(samples, result.done)
    resident = [round(memory / 2**20) for _, memory in samples[:: max(1, len(samples) // 40)]]
    print(
        f"{result.good} good, {result.bad} bad requests in {result.seconds:.0f} s at {options.concurrency} in flight"
        f"{' (cut short by --minutes)' if result.cut else ''}; told to come back {result.came_back} times"
    )
    for kind, statuses in sorted(result.statuses.items()):
        print(f"  {kind}: " + ", ".join(f"{s or 'left'} x {n}" for s, n in sorted(statuses.items())))
    print("memory: " + ("not measured" if grew is None else f"{grew:+.1%}; MB: {resident}"), flush=True)
    if options.json:
        options.json.write_text(json.dumps({**about(result), "growth": grew, "rss_mb": resident}, indent=1))
    return grew


def main() -> None:
    """Run it, and print what was found."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends too
    options = parse_arguments()
    ours = options.url is None
    port = free_port()
    url = options.url or f"http://127.0.0.1:{port}/v1"
    check_reach([url], False)
    usual = ["--pruner", "dart", "--keep", "64", "--allow", "random,unpruned", "--queue", "64"]
    command = vtc_serve(port, [*usual, *shlex.split(options.serve)]) if ours else shlex.split(options.start or "")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        server = ServerProcess(command, url, log) if command else None
        try:
            model = look(Target(name="soak", url=url, model=options.model)).model
            bodies = options.body or (VTC_BODIES if ours else [{}])
            pool = good_requests(load_tasks(bundled_data()), model, bodies, options.pool)
            soak = Soak(url, pool, strict=not options.lenient, known=options.known)
            soak.alone = soak.ask_alone()
            print(f"{len(pool)} requests alone: answered", flush=True)
            with MemoryWatch(options.pid or (server.pid if server else 0), lambda: soak.result.done) as watch:
                result = soak.run(options.count, options.concurrency, 60 * options.minutes)
            samples, faults = [(n, memory) for n, memory in watch.samples if memory], result.faults
            grew = report(result, samples, options)
            if grew is not None and grew > FLAT:
                faults.append(f"memory grew by {grew:.1%} after the first quarter, {FLAT:.0%} are allowed")
            if server is not None and not server.alive:
                faults.append(f"the server ended:\n{server.said}")
            if not wait_until(lambda: not in_flight(url), 10):
                faults.append("10 s after the end requests are still in flight")
            if in_flight(url) is None:
                print("its metrics do not tell what is in flight: whether places are given back was not seen")
            if server is not None and server.alive:
                faults += killed(server, soak)
                print("killed and started again", flush=True)
        finally:
            if server is not None:
                server.kill()
    for fault in faults[:20]:
        print(f"FAULT {fault}")
    if faults:
        raise SystemExit(f"{len(faults)} faults")
    print("all held")


if __name__ == "__main__":
    main()
