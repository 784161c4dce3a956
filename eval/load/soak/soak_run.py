"""The soak itself: the answers of requests alone, then all at once with bad ones among them."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from .bad_requests import FIRST, HALF, WHOLE, Bad, bad_request
from .good_requests import Answer, Good, read_answer

EVERY = 10  # one in so many is bad
TRIES = 20  # of a request that was told to come back
MARK = re.compile(r"mark\d{5}")
INSIDE = re.compile(r"Traceback|site-packages|File \"|/[\w.-]+/[\w.-]+\.py\b")
JSON = {"Content-Type": "application/json"}


@dataclass
class SoakResult:
    """What happened; ``faults`` is empty where all that has to hold held.

    Attributes
    ----------
    good, bad : int
        Requests of each that were sent.
    came_back : int
        Times that a good one was told to come back later, and did.
    statuses : mapping
        Kinds of bad requests, with the statuses that they got.
    faults : list of str
        One line each.
    seconds : float
        All of it, without the answers alone.
    cut : bool
        Whether time ended it before all was sent.
    """

    good: int = 0
    bad: int = 0
    came_back: int = 0
    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cut: bool = False

    @property
    def done(self) -> int:
        """Requests that have ended."""
        return self.good + self.bad


class Soak:
    """A soak of one server.

    Parameters
    ----------
    url : str
        Its base, such as ``http://127.0.0.1:8000/v1``.
    pool : sequence of Good
        Good requests, which come again and again.
    strict : bool
        Whether every bad request must be refused by a 4xx; else any answer but a 5xx will do.
    known : collection of str
        Kinds of bad requests that this server is known to answer with a 5xx, which is then no fault.
    every : int
        One in so many is bad.
    request_seconds : float
        Longest time of a request.
    """

    def __init__(
        self,
        url: str,
        pool: Sequence[Good],
        *,
        strict: bool = True,
        known: Collection[str] = (),
        every: int = EVERY,
        request_seconds: float = 120.0,
    ):
        self.url, self.pool, self.strict, self.known, self.every = url, pool, strict, known, every
        self.request_seconds = request_seconds
        self.path = f"{url}/chat/completions"
        self.result = SoakResult()
        self.alone: list[Answer] = []

    def ask_alone(self) -> list[Answer]:
        """The answer of each good request by itself, one after the other.

        Raises
        ------
        ValueError
            If one is not answered.
        """
        with httpx.Client(timeout=self.request_seconds, trust_env=False) as client:
            found = []
            for i, good in enumerate(self.pool):
                response = client.post(self.path, content=good.data, headers=JSON)
                if response.status_code != 200:
                    raise ValueError(f"good request {i} alone got HTTP {response.status_code}: {response.text[:300]}")
                found.append(read_answer(good, response))
        return found

    def run(self, count: int, concurrency: int, seconds: float) -> SoakResult:
        """Send `count` requests, `concurrency` at a time, for at most `seconds`."""
        self.alone = self.alone or self.ask_alone()
        start = time.monotonic()
        asyncio.run(self._all(count, concurrency, start + seconds))
        self.result.seconds = time.monotonic() - start
        return self.result

    async def _all(self, count: int, concurrency: int, end: float) -> None:
        numbers = iter(range(count))
        limits = httpx.Limits(max_connections=2 * concurrency)
        settings: dict[str, Any] = {"timeout": self.request_seconds, "limits": limits, "trust_env": False}
        # bad ones come by connections of their own: a server may close one on which it has refused a body
        async with httpx.AsyncClient(**settings) as client, httpx.AsyncClient(**settings) as stranger:

            async def one_after_another() -> None:
                for number in numbers:
                    if time.monotonic() > end:
                        self.result.cut = True
                        return
                    await self._one(client, stranger, number)

            await asyncio.gather(*(one_after_another() for _ in range(concurrency)))

    async def _one(self, client: httpx.AsyncClient, stranger: httpx.AsyncClient, number: int) -> None:
        chosen = number % len(self.pool)
        try:
            if number % self.every == self.every - 1:
                mark = f"mark{number:05d}"
                await self._bad(stranger, bad_request(number // self.every, mark, self.pool[chosen]), mark)
                self.result.bad += 1
            else:
                await self._good(client, number, chosen)
                self.result.good += 1
        except (httpx.HTTPError, OSError) as error:
            self.result.faults.append(f"request {number}: {type(error).__name__} {error}")

    async def _good(self, client: httpx.AsyncClient, number: int, chosen: int) -> None:
        good = self.pool[chosen]
        for _ in range(TRIES):
            response = await client.post(self.path, content=good.data, headers=JSON)
            if response.status_code != 429:
                break
            self.result.came_back += 1
            await asyncio.sleep(min(1.0, float(response.headers.get("Retry-After", "0.5"))))
        if response.status_code != 200:
            self.result.faults.append(f"good request {number}: HTTP {response.status_code} {response.text[:200]}")
            return
        self._check_marks(number, response.text, "")
        try:
            found = read_answer(good, response)
        except ValueError as error:
            self.result.faults.append(f"good request {number}: {error}")
            return
        if found != self.alone[chosen]:
            self.result.faults.append(f"good request {number}: {found} but alone {self.alone[chosen]}")

    async def _bad(self, client: httpx.AsyncClient, bad: Bad, mark: str) -> None:
        statuses = self.result.statuses.setdefault(bad.kind, Counter())
        if bad.how == WHOLE:
            response = await client.post(self.path, content=bad.body, headers=JSON)
            statuses[response.status_code] += 1
            text, status = response.text, response.status_code
            wrong = status >= 500 or (self.strict and not 400 <= status < 500)
            if wrong and bad.kind not in self.known:
                self.result.faults.append(f"a bad request ({bad.kind}): HTTP {status} {text[:200]}")
            self._check_marks(-1, text, mark)
            if inside := INSIDE.search(text):
                self.result.faults.append(f"a bad request ({bad.kind}): its answer tells of the server: {inside[0]!r}")
        elif bad.how == FIRST:
            async with client.stream("POST", self.path, content=bad.body, headers=JSON) as response:
                statuses[response.status_code] += 1
                async for _ in response.aiter_lines():
                    break
        else:
            await self._leave(bad)
            statuses[0] += 1

    async def _leave(self, bad: Bad) -> None:
        """Send a request, or half of it, and hang up."""
        parts = urlsplit(self.url)
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = (
            f"POST {parts.path}/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(bad.body)}\r\n\r\n"
        )
        writer.write(head.encode() + bad.body[: len(bad.body) // (2 if bad.how == HALF else 1)])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()

    def _check_marks(self, number: int, text: str, own: str) -> None:
        others = {*MARK.findall(text)} - {own}
        if others:
            self.result.faults.append(f"request {number if number >= 0 else own} sees another's text: {others}")


RUNNING = ("vtc_running", "vtc_queue_depth", "vllm:num_requests_running", "vllm:num_requests_waiting")


def in_flight(url: str) -> float | None:
    """Requests that a server counts as running or waiting; None where its metrics say nothing of them."""
    base = url.removesuffix("/v1")
    try:
        lines = httpx.get(f"{base}/metrics", timeout=10, trust_env=False).text.splitlines()
    except httpx.HTTPError:
        return None
    found = [float(line.rpartition(" ")[2]) for line in lines if re.match(rf"(?:{'|'.join(RUNNING)})[ {{]", line)]
    return sum(found) if found else None


def about(result: SoakResult) -> Mapping[str, Any]:
    """A result ready for JSON."""
    statuses = {kind: dict(counts) for kind, counts in result.statuses.items()}
    return {**vars(result), "statuses": statuses}
