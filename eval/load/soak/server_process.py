"""A server as a process of its own, that can be killed and started again at the same address."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx

from .resident_memory import wait_until

START = 600.0  # seconds that loading may take


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def vtc_serve(port: int, arguments: Sequence[str] = ()) -> list[str]:
    """The command of a ``vtc serve``."""
    return [sys.executable, "-m", "vtc", "serve", "--port", str(port), *arguments]


class ServerProcess:
    """One that runs.

    Parameters
    ----------
    command : sequence of str
        Starts it.
    url : str
        Its base, such as ``http://127.0.0.1:8000/v1``.
    log : Path
        Where its output goes.

    Raises
    ------
    ValueError
        If it ends, or does not answer in time.
    """

    def __init__(self, command: Sequence[str], url: str, log: Path):
        self.command, self.url, self.log = list(command), url, log
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(self.command, stdout=file, stderr=file, start_new_session=True)
        try:
            if not wait_until(self._ready, START):
                raise ValueError(f"{self.command[0]} did not answer at {self.url} within {START:g} s:\n{self.said}")
        except BaseException:
            self.kill()
            raise

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise ValueError(f"the server ended with exit code {self.process.returncode}:\n{self.said}")
        try:
            return httpx.get(f"{self.url}/models", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    @property
    def said(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-2000:]

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def kill(self) -> None:
        """Kill -9 it, and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
