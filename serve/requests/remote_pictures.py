"""Pictures fetched from the web, for servers that allow it: never from an address inside somebody's network.

A name is looked up once, all its addresses are checked, and the connection goes to one that was checked: what the name
means a moment later does not matter. Redirects are followed by hand, each like a new address.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from .refusal import Refusal

PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
# networks that carry an IPv4 address inside an IPv6 one, which the flags below don't look at
CARRIERS = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")))


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet: not private, loopback, link-local, reserved, multicast."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.scope_id is not None or ip.is_site_local or any(ip in network for network in CARRIERS):
            return False
    inside = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_reserved or ip.is_multicast
    return ip.is_global and not inside and not ip.is_unspecified


def look_up(host: str, port: int) -> list[str]:
    """All addresses of a name."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


@dataclass(frozen=True)
class Fetcher:
    """Fetches one picture at a time, within a size and a time.

    Attributes
    ----------
    most_bytes : int
        Larger answers are given up.
    seconds : float
        For all of it: name, connections, redirects, content.
    redirects : int
        How many are followed.
    ports : sequence of int
        Others are refused.
    look_up, allows : callable
        From a name and a port to addresses, and whether one may be connected to.
    """

    most_bytes: int
    seconds: float = 10.0
    redirects: int = 3
    ports: Sequence[int] = (80, 443)
    look_up: Callable[[str, int], Sequence[str]] = look_up
    allows: Callable[[str], bool] = is_public

    def fetch(self, url: str, name: str, deadline: float | None = None) -> bytes:
        """The content of `url`; `name` is the field that errors call it by.

        Parameters
        ----------
        deadline : float, optional
            Of ``time.monotonic``; `seconds` from now if left out.

        Raises
        ------
        Refusal
            If it is not allowed, not there, too large or too slow. Which address a name has is not told.
        """
        deadline = time.monotonic() + self.seconds if deadline is None else deadline
        for _ in range(self.redirects + 1):
            parts, port = self._parts(url, name)
            address = self._address(parts.hostname or "", port, name)
            try:
                found = self._get(parts, port, address, deadline)
            except ssl.SSLCertVerificationError:
                raise self._refused(name, "its server's certificate is none that this server trusts") from None
            except (OSError, http.client.HTTPException, ValueError):
                raise self._refused(name, f"nothing readable came within {self.seconds:g} seconds") from None
            if isinstance(found, bytes):
                return found
            if found is None:
                raise self._refused(name, f"it is no picture of at most {self.most_bytes:,} bytes that anyone may read")
            url = urljoin(url, found)
            if parts.scheme == "https" and not url.lower().startswith("https:"):
                raise self._refused(name, "it redirects from https to something else")
        raise self._refused(name, f"it redirects more than {self.redirects} times")

    @staticmethod
    def _refused(name: str, why: str) -> Refusal:
        return Refusal(f"{name} can't be fetched: {why}", param=name, code="invalid_image_url")

    def _parts(self, url: str, name: str) -> tuple[SplitResult, int]:
        try:
            parts = urlsplit(url)
            port = parts.port or PORTS.get(parts.scheme, 0)
        except ValueError:
            raise self._refused(name, "it is no URL") from None
        if parts.scheme not in PORTS or not parts.hostname:
            raise self._refused(name, "only http and https addresses are fetched")
        if "@" in parts.netloc:
            raise self._refused(name, "it holds a user's name")
        if port not in self.ports:
            raise self._refused(name, f"port {port} is not among those allowed, {', '.join(map(str, self.ports))}")
        if not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
            raise self._refused(name, "it holds characters that must be percent-encoded")
        return parts, port

    def _address(self, host: str, port: int, name: str) -> str:
        """The address to connect to; refused if any of the name's is inside a network."""
        found = self.look_up(host, port)
        if not found or not all(map(self.allows, found)):
            raise self._refused(name, "there is no such host on the open internet")
        return found[0]

    def _get(self, parts: SplitResult, port: int, address: str, deadline: float) -> bytes | str | None:
        """The content, or where it moved; None for anything else, and for more than is allowed."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        host = parts.hostname or ""
        plain = sock = socket.create_connection((address, port), timeout=left)
        # a timeout counts each read: this ends a server that sends a byte now and then
        clock = threading.Timer(max(0.0, deadline - time.monotonic()), _hang_up, [plain])
        clock.start()
        try:
            if parts.scheme == "https":
                sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
            connection = http.client.HTTPConnection(host, port, timeout=left)
            connection.sock = sock
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "vtc", "Connection": "close"}
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            if answer.status in REDIRECTS and (moved := answer.getheader("Location")):
                return moved
            if answer.status != 200:
                return None
            data = answer.read(self.most_bytes + 1)
            if time.monotonic() > deadline:
                raise TimeoutError  # what was read may be cut off
            return data if len(data) <= self.most_bytes else None
        finally:
            clock.cancel()
            sock.close()
            plain.close()


def _hang_up(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # gone already
        return
