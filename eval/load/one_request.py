"""One streamed chat completion, timed from the moment it is sent."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

WORDS = 300  # of a server's message


@dataclass
class Outcome:
    """What became of a request.

    Attributes
    ----------
    ok : bool
        Whether it was answered to the end.
    status : int
        Of HTTP; 0 where there was none.
    error : str
        What went wrong, the kind before a colon; empty if nothing.
    began : float
        The wall clock when it was sent.
    seconds : float
        Until its end.
    ttft : float, optional
        Seconds to the first text.
    gaps : list of float
        Seconds between pieces of text, which are tokens on most servers.
    prompt_tokens, completion_tokens : int, optional
        As the server counts them, visual tokens that were dropped left out.
    dropped : int
        Visual tokens that vtc's server counted in the prompt and dropped.
    finish : str, optional
        ``finish_reason``.
    """

    ok: bool = False
    status: int = 0
    error: str = ""
    began: float = 0.0
    seconds: float = 0.0
    ttft: float | None = None
    gaps: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    dropped: int = 0
    finish: str | None = None


async def ask(client: httpx.AsyncClient, url: str, body: bytes, headers: dict[str, str], seconds: float) -> Outcome:
    """Send `body` and read the stream to its end; never raises for what a server does."""
    found = Outcome(began=time.time())
    start = time.perf_counter()
    try:
        await asyncio.wait_for(_read(client, url, body, headers, found, start), seconds)
    except (TimeoutError, asyncio.TimeoutError):  # one and the same from Python 3.11 on
        found.error = f"timeout: no end within {seconds:g} s"
    except httpx.HTTPError as error:
        found.error = f"connection: {type(error).__name__} {error}".strip()
    found.seconds = time.perf_counter() - start
    found.ok = not found.error
    return found


async def _read(
    client: httpx.AsyncClient, url: str, body: bytes, headers: dict[str, str], found: Outcome, start: float
) -> None:
    sent = {"Content-Type": "application/json", **headers}
    async with client.stream("POST", f"{url}/chat/completions", content=body, headers=sent) as response:
        found.status = response.status_code
        if response.status_code != 200:
            found.error = f"HTTP {response.status_code}: {server_words(await response.aread())}"
            return
        last, done = None, False
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                done = True
                break
            now = time.perf_counter()
            try:
                event = json.loads(data)
            except ValueError:
                found.error = "stream: a line is no JSON"
                return
            if not isinstance(event, dict) or "error" in event:
                found.error = f"stream: {server_words(data.encode())}"
                return
            if _take(event, found):
                if last is None:
                    found.ttft = now - start
                else:
                    found.gaps.append(now - last)
                last = now
    if not done:
        found.error = "cut off: the stream ended before [DONE]"
    elif found.ttft is None:
        # an answer of no text, such as an end at once: the first token is the end
        found.ttft = time.perf_counter() - start


def _take(event: dict[str, Any], found: Outcome) -> bool:
    """Note what an event says; whether it brings text."""
    usage = event.get("usage")
    if isinstance(usage, dict):
        found.prompt_tokens, found.completion_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        about = usage.get("vtc")
        if isinstance(about, dict) and found.prompt_tokens is not None:
            found.dropped = about.get("visual_tokens_seen", 0) - about.get("visual_tokens_kept", 0)
            found.prompt_tokens -= found.dropped
    text = False
    for choice in event.get("choices") or ():
        found.finish = choice.get("finish_reason") or found.finish
        delta = choice.get("delta") or {}
        text |= any(delta.get(key) for key in ("content", "reasoning_content", "reasoning"))
    return text


def server_words(data: bytes) -> str:
    """What a server's error says, in one line."""
    text = data.decode(errors="replace")
    try:
        found = json.loads(text)
        error = found.get("error", found)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        pass
    text = " ".join(text.split())
    return text if len(text) <= WORDS else text[:WORDS] + " ..."
