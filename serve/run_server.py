"""From options to a server that runs: the model loaded, its methods tried, the port opened, and a quiet end."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from PIL import Image

from vtc.eval.vlm.encode_once import to_device
from vtc.eval.vlm.loading import Loaded
from vtc.eval.vlm.prompts import chat_inputs
from vtc.eval.vlm.pruning_settings import takes_keep
from vtc.pipeline_text import parse
from vtc.pruners.vtc_warning import VTCWarning
from vtc.serve.generation.engine import Engine
from vtc.serve.requests.chat_request import Sampling
from vtc.serve.requests.pruning_choice import Allowed, Choice

from .app import Server
from .settings import ServerSettings

GRACE = 10  # seconds for running requests to be answered when the server is told to end


def check_extra() -> None:
    """Refuse in words where what a server needs is not installed."""
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"vtc serve needs {error.name}: pip install 'vtc[serve]'") from None


def try_settings(engine: Engine, allowed: Allowed, wanted: Sequence[str] | None) -> Allowed:
    """Set every method up once, so that a wrong one is found before anybody asks.

    Parameters
    ----------
    wanted : sequence of str, optional
        Those that were named; of the others, the ones that don't run on the model are left out.

    Raises
    ------
    ValueError
        If a named one does not run on the model.
    """
    fit = []
    for text in allowed.settings:
        pipeline = parse(text)
        if len(pipeline) == 1 and pipeline[0].keep is None:
            pipeline = (replace(pipeline[0], keep=0.5),) if takes_keep(pipeline[0]) else pipeline
        try:
            engine.set_up(Choice.of(pipeline))
        except (NotImplementedError, TypeError, ValueError) as error:
            if wanted is None and text != allowed.default.pruner:
                continue
            raise ValueError(f"{text} does not run on this model: {error}") from None
        fit.append(text)
    return replace(allowed, settings=tuple(fit))


def warm_up(engine: Engine, choice: Choice) -> None:
    """Answer a grey picture with one token, so that the first client does not wait for what is done once."""
    picture = {"type": "image", "image": Image.new("RGB", (336, 336), (128, 128, 128))}
    found = chat_inputs(engine.processor, "?", [picture])
    inputs = {name: to_device(value, engine.model) for name, value in found.items()}
    for each in {Choice(), choice}:
        engine.generate(inputs, each, Sampling(temperature=0, max_tokens=1))


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; connections wait until the server takes them.

    Raises
    ------
    OSError
        In words, if it can't.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
    except OSError:
        raise OSError(f"--host {host!r} is no address of this machine") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(128)
    except OSError as error:
        sock.close()
        why = error.strerror or "not possible"
        raise OSError(f"can't listen on {host} port {port}: {why.lower()}; --port 0 takes any free one") from None
    return sock


def start_lines(settings: ServerSettings, port: int, loaded: Loaded) -> list[str]:
    """What is said when the server is ready."""
    allowed, limits = settings.allowed, settings.limits
    kept = "" if allowed.default.keep is None else f", keep={allowed.default.keep}"
    method = "unpruned" if allowed.default.pruner is None else f"{allowed.default.pruner}{kept}"
    where = f"http://{settings.shown_host}:{port}"
    device = next(loaded.model.parameters()).device
    return [
        f"serving {settings.name} on {device} at {where}/v1 ({method})",
        f"requests may ask otherwise. {allowed.offered()}",
        f"limits: {limits.body_mb} MB and {limits.pictures} pictures a request, {limits.max_tokens} tokens an answer, "
        f"{limits.seconds:g} s, {limits.queue} waiting; API key {'needed' if settings.key else 'not set'}",
        *([f"look at {where}/ in a browser"] if settings.page else []),
        "Ctrl-C stops it",
    ]


def make_server(loaded: Loaded, settings: ServerSettings, wanted: Sequence[str] | None) -> Server:
    """The server of a model, its methods tried and warm; `wanted` as for ``try_settings``."""
    engine = Engine(loaded, settings.limits, settings.positions)
    allowed = try_settings(engine, settings.allowed, wanted)
    warm_up(engine, allowed.default)
    return Server(engine, replace(settings, allowed=allowed))


def uvicorn_server(server: Server) -> Any:
    """Uvicorn around the server, quiet and bounded."""
    import uvicorn

    config = uvicorn.Config(
        server.app,
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=server.settings.limits.queue + 256,
        timeout_graceful_shutdown=GRACE,
    )
    return uvicorn.Server(config)


def run(loaded: Loaded, settings: ServerSettings, wanted: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM; the exit code.

    Raises
    ------
    OSError, ValueError
        If it can't start, in one line.
    """
    sock = listen(settings.host, settings.port)
    try:
        server = make_server(loaded, settings, wanted)
        for line in settings.warnings:
            warnings.warn(line, VTCWarning, stacklevel=2)
        for line in start_lines(server.settings, sock.getsockname()[1], loaded):
            print(line, flush=True)
        with _quiet_signals(), _log_on_stderr():
            uvicorn_server(server).run(sockets=[sock])
    finally:
        sock.close()
    print("stopped", flush=True)
    return 0


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """Nothing happens at the signals that end a server: uvicorn hears them, and raises them again when it is done."""
    before = {signum: signal.signal(signum, lambda *_: None) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """A line for every request, and whatever goes wrong in full."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = {"vtc.serve": logging.INFO, "uvicorn": logging.WARNING}
    for name, level in loggers.items():
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name in loggers:
            logging.getLogger(name).removeHandler(handler)
