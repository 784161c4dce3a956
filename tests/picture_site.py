"""A web server of pictures on loopback, plain or encrypted, and a certificate for it that nobody trusts by itself."""

from __future__ import annotations

import io
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

HOST = "pictures.test"
LATE = 0.4  # seconds


def png(side: int) -> bytes:
    """A green picture."""
    data = io.BytesIO()
    Image.new("RGB", (side, side), (0, 160, 0)).save(data, "PNG")
    return data.getvalue()


class Site(BaseHTTPRequestHandler):
    """`/green/64` is a picture of 64 x 64, `/late/64` after a moment, `/bytes/10` ten letters, `/to/...` elsewhere."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Host"]))  # type: ignore[attr-defined]
        name, _, value = self.path[1:].partition("/")
        if name == "to":
            self.send_response(302)
            self.send_header("Location", value.replace("|", "/"))
            self.end_headers()
        elif name == "slow":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # the other side hangs up
                for _ in range(200):  # a byte now and then
                    self.wfile.write(b"x")
                    time.sleep(0.05)
        else:
            time.sleep(LATE if name == "late" else 0)
            self.send_response(404 if name == "missing" else 200)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(png(int(value)) if name in ("green", "late") else b"x" * int(value or 5))

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def picture_site(certificate: Path | None = None) -> Iterator[ThreadingHTTPServer]:
    """A server that runs; encrypted where it has a `certificate`. Its ``asked`` lists paths and hosts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.asked = []  # type: ignore[attr-defined]
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # type: ignore[method-assign]  # a client that hangs up is meant to
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def own_certificate(folder: Path, host: str = HOST) -> Path:
    """A file with a key and a certificate for `host`, signed by nobody else."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs the program openssl to make a certificate")
    key, certificate = folder / f"{host}.key", folder / f"{host}.pem"
    subprocess.run(
        [
            *(program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={host}"),
            *("-addext", f"subjectAltName=DNS:{host}", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    certificate.write_bytes(certificate.read_bytes() + key.read_bytes())
    return certificate


def url(site: ThreadingHTTPServer, path: str, host: str = HOST, scheme: str = "http") -> str:
    """Address of a path there."""
    return f"{scheme}://{host}:{site.server_port}{path}"


def meant_public(*names: str) -> dict[str, Callable[..., Any]]:
    """Arguments of a ``Fetcher`` to which loopback is public and `names` are there; other addresses are as they are."""
    from vtc.serve.requests.remote_pictures import is_public

    known = {name: ["127.0.0.1"] for name in (HOST, *names)}
    known |= {"inside.test": ["10.0.0.7"], "both.test": ["127.0.0.1", "192.168.0.1"]}
    return {
        "look_up": lambda host, port: known.get(host, [host] if host[0].isdigit() else []),
        "allows": lambda ip: ip == "127.0.0.1" or is_public(ip),
    }
