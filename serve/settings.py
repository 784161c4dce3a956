"""What a server serves, to whom, and within which limits."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from vtc.config import POSITIONS
from vtc.serve.requests.limits import Limits
from vtc.serve.requests.pruning_choice import Allowed


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of one server.

    Attributes
    ----------
    name : str
        What requests call the model; never a path.
    allowed : Allowed
        The method of requests that name none, and what others may choose.
    limits : Limits
        Of a request.
    host, port : str, int
        Where it listens; port 0 is any free one.
    key : str, optional
        What clients must send as ``Authorization: Bearer``.
    page : bool
        Whether there is a page at ``/``.
    positions : {"keep", "compact"}
        As ``vtc.compress`` takes it, for all methods.
    """

    name: str
    allowed: Allowed = field(default_factory=Allowed)
    limits: Limits = field(default_factory=Limits)
    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    page: bool = True
    positions: str = "keep"

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise ValueError(f"--positions must be {' or '.join(POSITIONS)}, got {self.positions!r}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port {self.port} is out of range: 0 (any free one) to 65535")
        if not self.host.strip():
            raise ValueError("--host is empty; 127.0.0.1 is this machine only")
        if self.key is not None and not re.fullmatch(r"[\x21-\x7e]+", self.key):
            raise ValueError("the API key must be of printable ASCII characters without spaces, and not empty")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def shown_host(self) -> str:
        """The host as it stands in an address."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def warnings(self) -> list[str]:
        """What somebody who starts it should know."""
        found = []
        if not self.is_local and self.key is None:
            found.append(
                f"--host {self.host} lets other machines in, and there is no API key: whoever reaches the port may use "
                "the model. Set VTC_API_KEY, or leave --host out"
            )
        if not self.is_local:
            found.append("the connection is not encrypted: put a reverse proxy with TLS before it")
        if self.limits.remote_pictures:
            found.append("--remote-pictures: this machine fetches addresses that clients name (public ones only)")
        return found


def served_name(source: str) -> str:
    """What clients call a model: its hub id, or the name of its folder."""
    path = Path(source).expanduser()
    return (path.resolve().name or "model") if path.is_dir() else source
