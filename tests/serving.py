"""Servers of the bundled model for tests, each in a thread of this process, and what clients send them."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
from PIL import Image

from vtc.eval.vlm.loading import load_model
from vtc.serve.app import Server
from vtc.serve.requests.limits import Limits
from vtc.serve.requests.pruning_choice import Allowed
from vtc.serve.run_server import listen, make_server, uvicorn_server
from vtc.serve.settings import ServerSettings

ALLOW = ("dart(...)", "random", "uniform", "unpruned")
PATIENCE = 60.0  # seconds


@dataclass
class Running:
    """A server that runs, and where."""

    server: Server
    url: str

    def client(self, key: str = "none", **more: Any) -> openai.OpenAI:
        """The real client; what is refused is not tried again."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE, **more)


@contextmanager
def running(
    allow: Sequence[str] = ALLOW, limits: Limits | None = None, keep: tuple[Any, Any] = (None, None), **more: Any
) -> Iterator[Running]:
    """A server of its own model with ``dart`` at 64 tokens; it has ended afterwards."""
    allowed = Allowed.read("dart", 64, allow, *keep)
    settings = ServerSettings(name="bundled", allowed=allowed, limits=limits or Limits(), port=0, **more)
    sock = listen(settings.host, settings.port)
    server = make_server(load_model(device="cpu"), settings, allow)
    uvicorn = uvicorn_server(server)
    thread = threading.Thread(target=uvicorn.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        until(lambda: uvicorn.started)
        yield Running(server, f"http://127.0.0.1:{sock.getsockname()[1]}")
    finally:
        uvicorn.should_exit = True
        thread.join(PATIENCE)
        sock.close()
        assert not thread.is_alive()


def until(true: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def data_url(picture: Image.Image | bytes, kind: str = "png") -> str:
    """A picture as clients send it."""
    if isinstance(picture, Image.Image):
        data = io.BytesIO()
        picture.save(data, format=kind)
        picture = data.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def asking(question: str, *pictures: Image.Image) -> list[dict[str, Any]]:
    """One user's message."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(p)}} for p in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def templated(messages: Sequence[dict[str, Any]], *pictures: Image.Image) -> list[dict[str, Any]]:
    """The same messages as a processor's chat template takes them."""
    left, found = list(pictures), []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        made = [{"type": "image", "image": left.pop(0)} if p["type"] == "image_url" else p for p in parts]
        found.append({"role": message["role"], "content": made})
    return found


def never_ending(server: Server) -> None:
    """Have the model go on until its answer is as long as it may be."""
    server.engine.model.generation_config.eos_token_id = -1
