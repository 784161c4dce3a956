"""Requests that must be refused, or whose client leaves: broken, oversized, cut off."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .good_requests import Good

WHOLE, HALF, GONE, FIRST = "whole", "half sent", "left at once", "left at the first word"
MANY = 200_000  # characters: more than a server allows
MEGABYTES = 21  # more than ``vtc serve`` takes


@dataclass(frozen=True)
class Bad:
    """A request with a fault.

    Attributes
    ----------
    kind : str
        What is wrong with it.
    body : bytes
        What is sent.
    how : str
        ``WHOLE`` waits for the refusal; in the others the client goes away.
    """

    kind: str
    body: bytes
    how: str = WHOLE


def bad_request(number: int, mark: str, good: Good) -> Bad:
    """The bad request of a number: the kinds take turns. It says `mark`, which nobody else may get to see.

    Parameters
    ----------
    good : Good
        What is broken, or sent by a client who leaves.
    """
    kinds = [*_BODIES, HALF, GONE, FIRST]
    kind = kinds[number % len(kinds)]
    if kind in _BODIES:
        body = _BODIES[kind]({**good.body, "stream": False, "user": mark}, mark)
        return Bad(kind, body if isinstance(body, bytes) else json.dumps(body).encode())
    asked = {**good.body, "user": mark, "stream": kind == FIRST, "max_tokens": 64}
    asked.pop("stream_options", None)
    return Bad(kind, json.dumps(asked).encode(), kind)


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header promises a size, whatever follows."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _shows(body: dict[str, Any], url: str, mark: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": mark}]
    return {**body, "messages": [{"role": "user", "content": parts}]}


def _png(body: dict[str, Any], data: bytes, mark: str) -> dict[str, Any]:
    return _shows(body, "data:image/png;base64," + base64.b64encode(data).decode(), mark)


_BODIES: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "no JSON": lambda body, mark: json.dumps(body).encode()[:-20] + mark.encode(),
    "no text": lambda body, mark: b"\xff\xfe\x00" + mark.encode(),
    "no messages": lambda body, mark: {k: v for k, v in body.items() if k != "messages"},
    "a role that is none": lambda body, mark: {**body, "messages": [{"role": 7, "content": mark}]},
    "a temperature that is none": lambda body, mark: {**body, "temperature": mark},
    "no base64": lambda body, mark: _shows(body, f"data:image/png;base64,@@{mark}@@", mark),
    "a picture cut off": lambda body, mark: _png(body, png_of(64, 64, bytes(64 * 193))[:60], mark),
    "a picture of 900 million pixels": lambda body, mark: _png(body, png_of(30_000, 30_000), mark),
    "an oversized body": lambda body, mark: _shows(body, "data:image/png;base64," + "A" * (MEGABYTES << 20), mark),
    "a long text": lambda body, mark: {**body, "messages": [{"role": "user", "content": mark + " word" * MANY}]},
    "a long answer": lambda body, mark: {**body, "max_tokens": 10_000_000},
    "a model that is not there": lambda body, mark: {**body, "model": mark},
}
