"""One block: a fixed number of requests in flight, the next one sent as soon as one is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from .one_request import Outcome, ask


@dataclass(frozen=True)
class Sent:
    """How a block went: its ``seconds`` from the first request to the last end, and whether time cut it short."""

    seconds: float
    outcomes: tuple[Outcome, ...]
    cut: bool


async def run_block(
    url: str,
    bodies: Sequence[bytes],
    headers: dict[str, str],
    concurrency: int,
    block_seconds: float,
    request_seconds: float,
    done: Callable[[int, Outcome], None] = lambda index, outcome: None,
    *,
    trust_env: bool = False,
) -> Sent:
    """Send `bodies`, `concurrency` of them in flight.

    Parameters
    ----------
    block_seconds, request_seconds : float
        After which no more requests begin, and one is given up.
    done : callable
        Told of each request as it ends.
    trust_env : bool
        Whether the environment's proxies are used.
    """
    outcomes: dict[int, Outcome] = {}
    left = iter(enumerate(bodies))
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(limits=limits, timeout=None, trust_env=trust_env) as client:
        start = time.perf_counter()

        async def one_after_another() -> None:
            for index, body in left:
                outcomes[index] = await ask(client, url, body, headers, request_seconds)
                done(index, outcomes[index])
                if time.perf_counter() - start > block_seconds:
                    return

        await asyncio.gather(*(one_after_another() for _ in range(concurrency)))
        seconds = time.perf_counter() - start
    return Sent(seconds, tuple(outcomes[i] for i in sorted(outcomes)), len(outcomes) < len(bodies))
