"""Pictures by their address: only from public ones, whatever a name or a redirect says, within a size and a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import ThreadingHTTPServer

import pytest
from picture_site import meant_public, picture_site, url

from vtc.serve.requests.limits import Limits
from vtc.serve.requests.messages import read_messages
from vtc.serve.requests.refusal import Refusal
from vtc.serve.requests.remote_pictures import Fetcher, is_public


@pytest.fixture(scope="module")
def site() -> Iterator[ThreadingHTTPServer]:
    with picture_site() as found:
        yield found


@pytest.fixture
def fetcher(site: ThreadingHTTPServer) -> Fetcher:
    """One to which the test's own server is public, and every other address as it is."""
    return Fetcher(most_bytes=1000, seconds=5, ports=[site.server_port], **meant_public())


def test_a_picture_is_fetched_from_the_address_that_was_checked(site: ThreadingHTTPServer, fetcher: Fetcher) -> None:
    asked = []

    def once(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.7"]  # the name means another host a moment later

    assert replace(fetcher, look_up=once).fetch(url(site, "/bytes"), "p") == b"xxxxx"
    assert asked == ["pictures.test"]
    assert site.asked[-1] == ("/bytes", f"pictures.test:{site.server_port}")  # type: ignore[attr-defined]


def test_redirects_are_followed_and_counted(site: ThreadingHTTPServer, fetcher: Fetcher) -> None:
    assert fetcher.fetch(url(site, "/to/" + url(site, "/bytes").replace("/", "|")), "p") == b"xxxxx"
    assert fetcher.fetch(url(site, "/to/|bytes"), "p") == b"xxxxx"
    with pytest.raises(Refusal, match="redirects more than 3 times"):
        fetcher.fetch(url(site, "/to/" + "|to|" * 4), "p")


@pytest.mark.parametrize("host", ["inside.test", "both.test", "unknown.test", "10.0.0.7", "169.254.1.1"])
def test_hosts_inside_are_not_asked_at_once_or_after_a_redirect(
    site: ThreadingHTTPServer, fetcher: Fetcher, host: str
) -> None:
    for address in (url(site, "/bytes", host), url(site, "/to/" + url(site, "/bytes", host).replace("/", "|"))):
        before = len(site.asked)  # type: ignore[attr-defined]
        with pytest.raises(Refusal, match="no such host on the open internet") as refused:
            fetcher.fetch(address, "messages[0].content[0]")
        assert len(site.asked) - before == ("/to/" in address)  # type: ignore[attr-defined]
        assert "10.0.0.7" not in refused.value.message or host == "10.0.0.7"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ftp://pictures.test/a", "only http and https"),
        ("file:///etc/hostname", "only http and https"),
        ("http:///a", "only http and https"),
        ("http://pictures.test:99/a", "port 99 is not among those allowed"),
        ("http://pictures.test:x/a", "no URL"),
        ("http://me@pictures.test/a", "a user's name"),
        ("http://pictures.test/a b", "percent-encoded"),
        ("http://pictures.test/é", "percent-encoded"),
    ],
)
def test_addresses_that_are_not_fetched(fetcher: Fetcher, address: str, words: str) -> None:
    with pytest.raises(Refusal, match=words):
        replace(fetcher, ports=(80, 443)).fetch(address, "p")


def test_size_status_and_time(site: ThreadingHTTPServer, fetcher: Fetcher) -> None:
    assert len(fetcher.fetch(url(site, "/bytes/1000"), "p")) == 1000
    for path in ("/bytes/1001", "/missing"):
        with pytest.raises(Refusal, match="no picture of at most 1,000 bytes"):
            fetcher.fetch(url(site, path), "p")
    began = time.monotonic()
    with pytest.raises(Refusal, match=r"within 0.3 seconds"):
        replace(fetcher, seconds=0.3).fetch(url(site, "/slow"), "p")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1",
        "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0",
        "fc00::1", "fec0::1", "ff02::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
        "2001::1", "::7f00:1", "2001:db8::1", "localhost", "", "1.2.3", "0x7f.1",
    ],
)  # fmt: skip
def test_addresses_inside(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_addresses_outside(address: str) -> None:
    assert is_public(address)


def test_loopback_is_refused_by_default_and_web_addresses_only_where_they_are_allowed() -> None:
    for host in ("127.0.0.1", "localhost", "[::1]"):
        with pytest.raises(Refusal, match="no such host on the open internet"):
            Fetcher(most_bytes=10).fetch(f"http://{host}/", "p")
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    message = {"role": "user", "content": [part]}
    with pytest.raises(Refusal, match="fetches none"):
        read_messages([message], Limits())
    assert len(read_messages([message], Limits(remote_pictures=True)).pictures) == 1
