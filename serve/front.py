"""What every request passes: its id, who may come in, what is told when something goes wrong, and what is counted."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from vtc.serve.requests.refusal import Refusal

from .metrics import Metrics
from .settings import ServerSettings

log = logging.getLogger("vtc.serve")
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OPEN = ("/", "/health")  # without a key: a page without data, and whether the server lives
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
DRAIN_SECONDS, DRAIN_TIMES = 10.0, 4  # how long, and how many bodies, a refused request may go on sending


class ClientGone(Exception):
    """Nobody waits for the answer."""


class Front:
    """An ASGI application before the application.

    Parameters
    ----------
    inner : callable
        The routes.
    paths : sequence of str
        What is counted under its own name.
    """

    def __init__(self, inner: Any, settings: ServerSettings, metrics: Metrics, paths: tuple[str, ...]):
        self._inner, self._settings, self._metrics, self._paths = inner, settings, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; anything else, such as the start of the server, is passed on."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        arrived, request_id = time.monotonic(), secrets.token_hex(8)
        scope["vtc"] = {"id": request_id, "arrived": arrived}
        body, status = _Body(receive), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(b"x-request-id", request_id.encode()), *HEADERS]
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        try:
            self._check(scope)
            await self._inner(scope, body.receive, answer)
        except Refusal as refusal:
            status = await self._refuse(refusal, scope, body, answer, status)
        except ClientGone:
            status = 499
            self._metrics.gone.inc()
        except asyncio.CancelledError:  # the server stops, and has waited as long as it does
            stopping = Refusal("this server is stopping; ask again in a moment", 503, code="stopping")
            status = await self._refuse(stopping, scope, body, answer, status)
        except Exception:
            log.exception("request %s failed", request_id)
            status = await self._refuse(Refusal("something went wrong", 500), scope, body, answer, status)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            log.info("%s %s %s %d %.3fs", request_id, scope["method"], path, status, time.monotonic() - arrived)

    def _check(self, scope: Scope) -> None:
        """Refuse who may not come in."""
        headers = dict(scope["headers"])
        if self._settings.is_local and not _is_local_name(headers.get(b"host", b"").decode("latin-1")):
            # else a web page whose name was pointed at this machine could use the server through its reader's browser
            raise Refusal("this server answers to localhost only", 403, code="host_not_allowed")
        key = self._settings.key
        if key is None or scope["path"] in OPEN:
            return
        given = headers.get(b"authorization", b"")
        kind, _, found = given.partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(found.strip(), key.encode()):
            raise Refusal(
                "an API key is needed: send it as Authorization: Bearer KEY",
                401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _refuse(self, refusal: Refusal, scope: Scope, body: _Body, answer: Send, begun: int) -> int:
        """Tell the client; whoever still sends is heard out for a while, else it sees a broken connection instead."""
        self._metrics.refused.labels(refusal.code or f"status_{refusal.status}").inc()
        log.info("%s refused: %s", scope["vtc"]["id"], refusal.message)
        if begun:  # the answer was on its way: cutting it off is all that can be done
            return begun
        done = await body.drain(self._settings.limits.body_bytes * DRAIN_TIMES)
        headers = {**refusal.headers, **({} if done else {"Connection": "close"})}
        response = JSONResponse(refusal.body(scope["vtc"]["id"]), refusal.status, headers)
        await response(scope, body.receive, answer)
        return refusal.status


class _Body:
    """Knows whether all of a request has been received."""

    def __init__(self, receive: Receive):
        self._receive, self._ended = receive, False

    async def receive(self) -> Message:
        message = await self._receive()
        self._ended |= not message.get("more_body", False)
        return message

    async def drain(self, most: int) -> bool:
        """Receive what is still sent and forget it; whether it ended within bounds."""

        async def read() -> None:
            seen = 0
            while not self._ended and seen <= most:
                seen += len((await self.receive()).get("body", b""))

        try:
            await asyncio.wait_for(read(), DRAIN_SECONDS)
        except asyncio.TimeoutError:
            return False
        return self._ended


def _is_local_name(host: str) -> bool:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower() in LOCAL_NAMES or name.startswith("127.")
