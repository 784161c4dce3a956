"""Pictures by their address through a server that runs: what is refused, in words, and that it goes on afterwards."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from picture_site import HOST, LATE, meant_public, own_certificate, picture_site, png, url
from serving import PATIENCE, Running, data_url, running, until

from vtc.serve.requests.limits import Limits
from vtc.serve.requests.remote_pictures import Fetcher

LIMITS = Limits(remote_pictures=True, body_mb=1, picture_megapixels=1, max_tokens=8)
FETCHER = "vtc.serve.requests.messages.Fetcher"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(limits=LIMITS) as found:
        yield found


@pytest.fixture(scope="module")
def site() -> Iterator[ThreadingHTTPServer]:
    with picture_site() as found:
        yield found


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_certificate(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def secure(certificate: Path) -> Iterator[ThreadingHTTPServer]:
    with picture_site(certificate) as found:
        yield found


@pytest.fixture
def public(site: ThreadingHTTPServer, secure: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server takes loopback for a public address, on the ports of the two sites."""
    monkeypatch.setattr(
        FETCHER, partial(Fetcher, ports=(site.server_port, secure.server_port), **meant_public("other.test"))
    )


def ask(server: Running, *addresses: str) -> httpx.Response:
    parts = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    message = {"role": "user", "content": [*parts, {"type": "text", "text": "what color?"}]}
    body = {"model": "bundled", "messages": [message], "temperature": 0}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=PATIENCE, trust_env=False)


def words(found: httpx.Response, status: int = 400) -> str:
    """What a refusal says."""
    assert found.status_code == status, found.text
    assert "Traceback" not in found.text
    assert set(found.json()) == {"error"}
    return found.json()["error"]["message"]


@pytest.fixture(autouse=True)
def _goes_on(server: Running) -> Iterator[None]:
    """Whatever a test has asked for: afterwards no place is held, and a picture that comes along is answered."""
    yield
    until(lambda: server.server.worker.held == 0)
    assert ask(server, data_url(png(64))).status_code == 200


def test_addresses_inside_are_refused_as_the_server_is(server: Running, site: ThreadingHTTPServer) -> None:
    for host in ("127.0.0.1", "localhost", "[::1]", "10.0.0.7", "169.254.169.254"):
        said = words(ask(server, f"http://{host}/green/64"))
        assert "messages[0].content[0] can't be fetched: there is no such host on the open internet" in said
    assert "port" in words(ask(server, url(site, "/green/64", "127.0.0.1")))
    assert not site.asked  # type: ignore[attr-defined]


@pytest.mark.usefixtures("public")
def test_a_redirect_inside_is_refused(server: Running, site: ThreadingHTTPServer) -> None:
    for host in ("inside.test", "both.test", "10.0.0.7", "169.254.169.254", "[::1]"):
        moved = url(site, "/green/64", host).replace("/", "|")
        before = len(site.asked)  # type: ignore[attr-defined]
        assert "no such host on the open internet" in words(ask(server, url(site, f"/to/{moved}")))
        assert len(site.asked) == before + 1  # type: ignore[attr-defined]
    with_loopback_as_it_is = partial(Fetcher, ports=(site.server_port,), look_up=meant_public()["look_up"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FETCHER, with_loopback_as_it_is)
        assert "no such host" in words(ask(server, url(site, "/green/64")))


@pytest.mark.usefixtures("public")
def test_a_picture_from_outside_is_answered_as_one_that_came_along(
    server: Running, site: ThreadingHTTPServer, secure: ThreadingHTTPServer, certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    expected = ask(server, data_url(png(64))).json()
    for address in (
        url(site, "/green/64"),
        url(site, "/to/|green|64"),
        url(secure, "/green/64", scheme="https"),
        url(site, "/to/" + url(secure, "/green/64", scheme="https").replace("/", "|")),
    ):
        found = ask(server, address)
        assert found.status_code == 200, found.text
        assert found.json()["choices"] == expected["choices"]
        assert found.json()["usage"] == expected["usage"]
    assert secure.asked[-1] == ("/green/64", f"{HOST}:{secure.server_port}")  # type: ignore[attr-defined]


@pytest.mark.usefixtures("public")
def test_certificates(
    server: Running, secure: ThreadingHTTPServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(secure.asked)  # type: ignore[attr-defined]
    said = words(ask(server, url(secure, "/green/64", scheme="https")))  # nobody has signed it
    assert said == ("messages[0].content[0] can't be fetched: its server's certificate is none that this server trusts")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    # trusted, and of another host
    assert "certificate" in words(ask(server, url(secure, "/green/64", "other.test", "https")))
    assert "nothing readable" in words(ask(server, url(secure, "/green/64")))  # no encryption where there is one
    assert "from https to something else" in words(
        ask(server, url(secure, "/to/" + url(secure, "/green/64").replace("/", "|"), scheme="https"))
    )
    assert [path for path, _ in secure.asked[before:]] == [  # type: ignore[attr-defined]
        "/to/" + url(secure, "/green/64").replace("/", "|")
    ]


@pytest.mark.usefixtures("public")
def test_limits_of_size_and_pixels(server: Running, site: ThreadingHTTPServer) -> None:
    assert "no picture of at most 1,048,576 bytes" in words(ask(server, url(site, f"/bytes/{(1 << 20) + 1}")))
    assert "no whole PNG, JPEG, WebP or GIF" in words(ask(server, url(site, f"/bytes/{1 << 20}")))
    assert "no picture of at most" in words(ask(server, url(site, "/missing")))
    assert "1001 x 1001 pixels, allowed are 1 million" in words(ask(server, url(site, "/green/1001")))


def test_limit_of_time(server: Running, site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FETCHER, partial(Fetcher, seconds=0.5, ports=(site.server_port,), **meant_public()))
    began = time.monotonic()
    slow: list[Any] = []  # a byte now and then, each within any limit of one read
    threads = [threading.Thread(target=lambda: slow.append(ask(server, url(site, "/slow")))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert ask(server, data_url(png(64))).status_code == 200  # nobody else waits for them
    for thread in threads:
        thread.join(PATIENCE)
    assert time.monotonic() - began < 8
    assert [words(found).rpartition(": ")[2] for found in slow] == ["nothing readable came within 0.5 seconds"] * 3


def test_the_time_is_that_of_all_pictures_together(
    server: Running, site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = url(site, "/late/64")
    for seconds, status in ((2 * LATE, 400), (20 * LATE, 200)):
        monkeypatch.setattr(FETCHER, partial(Fetcher, seconds=seconds, ports=(site.server_port,), **meant_public()))
        found = ask(server, late, late, late)
        assert found.status_code == status, found.text
        assert status == 200 or "within 0.8 seconds" in words(found)


def test_a_body_that_trickles_in_ends(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtc.serve.body.SECONDS", 1.0)
    monkeypatch.setattr("vtc.serve.front.DRAIN_SECONDS", 0.5)
    host, port = server.url.removeprefix("http://").split(":")
    head = ["POST /v1/chat/completions HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
    began, sent = time.monotonic(), 0
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
        client.sendall("\r\n".join([*head, "Content-Length: 100000", "", ""]).encode())
        client.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() - began < PATIENCE:
            client.sendall(b" ")  # never still for long
            sent += 1
            try:
                answer = client.recv(65536)
            except TimeoutError:
                continue
        client.settimeout(PATIENCE)
        while not answer.partition(b"\r\n\r\n")[2]:  # the head may come by itself
            more = client.recv(65536)
            assert more, "a head without a body"
            answer += more
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 1 seconds" in answer
    assert sent > 5
    assert time.monotonic() - began < 20
