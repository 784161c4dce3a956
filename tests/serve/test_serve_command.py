"""``vtc serve`` as a process: what it says, how it ends, and how it does not start."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from command_line import run
from serving import PATIENCE, data_url

import vtc
from vtc.serve.requests.limits import Limits
from vtc.serve.run_server import _quiet_signals
from vtc.serve.settings import ServerSettings, served_name


def test_the_signals_that_end_a_server_end_nothing_else() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
    try:
        with _quiet_signals():
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(signum)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    log = (tmp_path / "log").open("w")
    arguments = [
        "bundled",
        "--pruner",
        "dart",
        "--keep",
        "64",
        "--port",
        "0",
        "--allow",
        "random,unpruned",
        "--max-keep",
        "100",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "vtc", "serve", *arguments], stdout=subprocess.PIPE, stderr=log, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        said = re.fullmatch(
            r"serving bundled on \w+(?::\d)? at (http://127\.0\.0\.1:\d+)/v1 \(dart, keep=64\)\n", first
        )
        assert said, (tmp_path / "log").read_text()
        assert "Offered are: dart, random, null (unpruned); keep up to 100." in process.stdout.readline()
        image, question = vtc.example()
        part = {"type": "image_url", "image_url": {"url": data_url(image)}}
        body = {
            "model": "bundled",
            "messages": [{"role": "user", "content": [part, {"type": "text", "text": question}]}],
        }
        found = httpx.post(f"{said[1]}/v1/chat/completions", json=body, timeout=PATIENCE)
        assert found.json()["usage"]["vtc"]["visual_tokens_kept"] == 64
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=PATIENCE)[0]
    finally:
        process.kill()
        process.wait()
        log.close()
    assert process.returncode == 0
    assert rest.endswith("stopped\n")
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--pruner", "dart"], "needs --keep"),
        (["--pruner", "dart", "--keep", "64", "--max-keep", "32"], "out of this server's range: at most 32"),
        (["--allow", "dort"], "Did you mean 'dart'"),
        (["--port", "70000"], "--port 70000 is out of range"),
        (["--pictures", "0"], "--pictures 0 is out of range: at least 1"),
        (["--host", "no.such.host.invalid"], "is no address of this machine"),
        (["--api-key", "a b"], "the API key must be of printable"),
        (["--allow", "dart(layer=99)"], "dart(layer=99) does not run on this model"),
        (["nowhere"], "no such model"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(given: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "serve", "--port", "0", *given)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run(capsys, "serve", "--port", port)
    assert code == 2
    assert f"can't listen on 127.0.0.1 port {port}: address already in use; --port 0 takes any free one" in err


def test_a_server_that_others_reach_without_a_key_is_warned_of() -> None:
    def of(host: str, key: str | None = None, **more: bool) -> str:
        return " ".join(ServerSettings(name="m", host=host, key=key, limits=Limits(**more)).warnings)  # type: ignore[arg-type]

    for host in ("127.0.0.1", "localhost", "::1"):
        assert of(host) == ""
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        assert "there is no API key" in of(host)
        assert "API key" not in of(host, "key")
        assert "not encrypted" in of(host, "key")
    assert "fetches addresses" in of("127.0.0.1", remote_pictures=True)


def test_no_folder_is_told_as_a_model_s_name(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    assert served_name(str(tmp_path / "my-model")) == "my-model"
    assert served_name(str(tmp_path / "my-model") + "/") == "my-model"
    assert served_name("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = run(capsys, "serve")
    assert code == 2
    assert "vtc serve needs uvicorn: pip install 'vtc[serve]'" in err
