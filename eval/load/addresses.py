"""Where a load test may go: to this machine, unless it is told otherwise."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def check_url(url: str, where: str) -> str:
    """`url`, if it is the base address of a server; `where` begins what errors say.

    Raises
    ------
    ValueError
        If it is not.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"{where}: {url!r} is no address of a server, such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"{where}: the URL may hold no user, password or query; key=VARIABLE names a key's variable")
    return url


def is_loopback(url: str) -> bool:
    """Whether an address is this machine's own, by its writing alone: names are not looked up."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_reach(urls: list[str], remote: bool) -> None:
    """Refuse other machines unless `remote`.

    Raises
    ------
    ValueError
        Naming the address.
    """
    for url in urls:
        if not remote and not is_loopback(url):
            raise ValueError(
                f"{url} is another machine: a load test asks as fast as it is answered, which whoever runs a shared "
                "server takes for an attack. --remote says that it is yours to load"
            )
