"""The body of a JSON request, within a size and a time."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from vtc.serve.requests.limits import Limits
from vtc.serve.requests.refusal import Refusal

from .front import ClientGone

SECONDS = 30.0


async def read_body(request: Request, limits: Limits) -> bytes:
    """All of it.

    Raises
    ------
    Refusal
        If it is of another type, too large or too slow.
    ClientGone
        If it ends before it should.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which a web page of somebody else's can't send unasked
        raise Refusal("the request's Content-Type must be application/json", 415)
    too_large = Refusal(
        f"the request is larger than {limits.body_mb} MB, which is all that this server reads: send less or smaller "
        "pictures",
        413,
        code="request_too_large",
    )
    said = request.headers.get("content-length", "0")
    if not said.isdecimal() or int(said) > limits.body_bytes:
        raise too_large
    data = bytearray()

    async def read() -> None:
        async for part in request.stream():
            data.extend(part)
            if len(data) > limits.body_bytes:
                raise too_large

    try:
        await asyncio.wait_for(read(), SECONDS)
    except asyncio.TimeoutError:
        raise Refusal(f"the request's body did not arrive within {SECONDS:g} seconds", 408) from None
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(data)
