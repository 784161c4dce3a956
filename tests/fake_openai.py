"""A small server that speaks OpenAI's chat completions as a request's field ``fake`` tells it, with known delays."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class FakeServer:
    """What it has seen, and where it is.

    ``fake`` may hold: ``ttft`` and ``gap`` (seconds), ``tokens``, ``prompt`` (tokens counted), ``status`` (an HTTP
    error), ``words`` (of it), ``cut`` (no [DONE]), ``event`` (an error in the stream), ``hang``.
    """

    owner: str = "fake"
    key: str = ""
    models: tuple[str, ...] = ("m",)
    serial: bool = False  # one request after the other
    bodies: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0
    in_flight: int = 0
    most_in_flight: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@contextmanager
def fake_server(**settings: Any) -> Iterator[FakeServer]:
    """One in a thread of this process; it has ended afterwards."""
    about, ready = FakeServer(**settings), threading.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        turn = asyncio.Lock()
        server = await asyncio.start_server(lambda r, w: _connection(about, turn, r, w), "127.0.0.1", 0, limit=1 << 26)
        about.port = server.sockets[0].getsockname()[1]
        ready.set()

    def work() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve())
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield about
    finally:

        def end() -> None:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.call_soon(loop.stop)

        loop.call_soon_threadsafe(end)
        thread.join(10)
        assert not thread.is_alive()


async def _connection(
    about: FakeServer, turn: asyncio.Lock, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = {k.lower(): v for k, _, v in (line.partition(": ") for line in head.split("\r\n")[1:])}
            body = await reader.readexactly(int(lines.get("content-length", 0)))
            if about.key and lines.get("authorization") != f"Bearer {about.key}":
                await _whole(writer, 401, {"error": {"message": "who are you?"}})
            elif head.startswith("GET /v1/models"):
                await _whole(writer, 200, {"data": [{"id": m, "owned_by": about.owner} for m in about.models]})
            elif head.startswith("POST /v1/chat/completions"):
                await _answer(about, turn, writer, json.loads(body))
            else:
                await _whole(writer, 404, {"error": "nothing here"})
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        pass
    finally:
        writer.close()


async def _whole(writer: asyncio.StreamWriter, status: int, found: Any) -> None:
    data = json.dumps(found).encode()
    writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(data)) + data)
    await writer.drain()


async def _answer(about: FakeServer, turn: asyncio.Lock, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
    about.bodies.append(body)
    about.in_flight += 1
    about.most_in_flight = max(about.most_in_flight, about.in_flight)
    try:
        if about.serial:
            async with turn:
                await _stream(writer, body)
        else:
            await _stream(writer, body)
    finally:
        about.in_flight -= 1


async def _stream(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
    fake = body.get("fake", {})
    if fake.get("hang"):
        await asyncio.sleep(3600)
    if "status" in fake:
        await _whole(writer, fake["status"], {"error": {"message": fake.get("words", "no")}})
        return
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    await _event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})  # at once: no token yet
    await asyncio.sleep(fake.get("ttft", 0))
    tokens = fake.get("tokens", 3)
    for i in range(tokens):
        await asyncio.sleep(fake.get("gap", 0) if i else 0)
        await _event(writer, {"choices": [{"delta": {"content": f"w{i} "}}]})
    if fake.get("event"):
        await _event(writer, {"error": {"message": "broken inside"}})
    await _event(writer, {"choices": [{"delta": {}, "finish_reason": "length"}]})
    usage = {"prompt_tokens": fake.get("prompt", 100), "completion_tokens": tokens, **fake.get("usage", {})}
    await _event(writer, {"choices": [], "usage": usage})
    if not fake.get("cut"):
        await _event(writer, "[DONE]")
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _event(writer: asyncio.StreamWriter, found: Any) -> None:
    data = f"data: {found if isinstance(found, str) else json.dumps(found)}\n\n".encode()
    writer.write(b"%x\r\n" % len(data) + data + b"\r\n")
    await writer.drain()
