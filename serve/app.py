"""The server's paths: chat completions, the model, health, metrics, a comparison and the page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Router

from vtc.eval.example_question import example
from vtc.eval.tasks.media.images import as_data_url
from vtc.serve.generation.compare import Comparer
from vtc.serve.generation.engine import Engine, Generated
from vtc.serve.generation.worker import Done, Job, Text, Worker
from vtc.serve.requests.chat_request import ChatRequest, parse_json, read_chat_request
from vtc.serve.requests.messages import placeholders_of
from vtc.serve.requests.pruning_choice import can_be_told
from vtc.serve.requests.refusal import Refusal

from .body import read_body
from .chat_answers import END, ChatAnswer, event
from .compare_request import read_compare_request
from .front import ClientGone, Front, Receive, Scope, Send
from .metrics import Metrics
from .page import page
from .settings import ServerSettings
from .waiting import Waiting

Answer = Callable[[Request], Awaitable[Response]]
MODEL = "/v1/models/"
GRACE = 20.0  # seconds for the running answer to stop when the server ends


class Server:
    """One model behind HTTP.

    Parameters
    ----------
    engine : Engine
        Used by the worker's thread alone once the server has started.
    settings : ServerSettings
        What is offered to whom.
    """

    def __init__(self, engine: Engine, settings: ServerSettings):
        self.engine, self.settings = engine, settings
        self.worker = Worker(settings.limits.queue)
        self.metrics = Metrics(self.worker)
        self.comparer = Comparer(engine)
        self._placeholders = placeholders_of(engine.processor)
        self._created = int(time.time())
        self._paths: dict[str, tuple[str, Answer]] = {
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
        }
        if settings.page:
            self._paths |= {
                "/": ("GET", self._page),
                "/v1/vtc/compare": ("POST", self._compare),
                "/v1/vtc/example": ("GET", self._example),
            }
        self._start_and_end = Router(lifespan=self._lifespan)
        self.app = Front(self._route, settings, self.metrics, tuple(self._paths))

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or what is asked of an application when its server starts and ends."""
        if scope["type"] != "http":
            await self._start_and_end(scope, receive, send)
            return
        path, request = scope["path"], Request(scope, receive, send)
        one = (("GET", self._model) if path.startswith(MODEL) else None) or ("", None)
        method, answer = self._paths.get(path, one)
        if answer is None:
            raise Refusal("there is nothing at this path", 404)
        if scope["method"].replace("HEAD", "GET") != method:
            raise Refusal(f"this path takes {method} only", 405, headers={"Allow": method})
        response = await answer(request)
        await response(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        self.worker.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self.worker.close, GRACE)

    async def _chat(self, request: Request) -> Response:
        async with self._admitted() as undo:
            settings = self.settings
            asked = read_chat_request(  # which leaves nothing of the body behind
                parse_json(await read_body(request, settings.limits)),
                settings.name,
                settings.limits,
                settings.allowed,
                self._placeholders,
            )
            await asyncio.to_thread(asked.chat.bring, settings.limits)
            waiting = self._wait(request, lambda job: self._answer(job, asked, request))
            undo.callback(waiting.close)
            answer = ChatAnswer(request.scope["vtc"]["id"], settings.name)
            if not asked.stream:
                return JSONResponse(answer.whole((await waiting.end()).result, asked.choice))
            first = await waiting.next()  # what fails before it has a status of its own
            return EventStream(self._stream(answer, asked, first, waiting), undo.pop_all())

    def _answer(self, job: Job, asked: ChatRequest, request: Request) -> Generated:
        """The work of a chat completion, in the worker's thread."""
        inputs = self.engine.inputs_of(asked.chat)
        found = self.engine.generate(inputs, asked.choice, asked.sampling, job.say, lambda: job.unwanted)
        self.metrics.answered(found, request.scope["vtc"]["arrived"])
        return found

    async def _stream(
        self, answer: ChatAnswer, asked: ChatRequest, happened: Text | Done, waiting: Waiting
    ) -> AsyncIterator[bytes]:
        """The events of a streamed answer; the first thing has `happened` already."""
        yield answer.chunk({"role": "assistant", "content": ""})
        try:
            while isinstance(happened, Text):
                yield answer.chunk({"content": happened.text})
                happened = await waiting.next()
        except Refusal as refusal:  # too late for a status
            yield event(refusal.body(answer.request_id))
            return
        yield answer.chunk({}, happened.result.finish)
        if asked.usage_in_stream:
            yield answer.usage_chunk(happened.result, asked.choice)
        yield END

    async def _compare(self, request: Request) -> Response:
        async with self._admitted() as undo:
            limits = self.settings.limits
            chat, choice, sampling = read_compare_request(
                parse_json(await read_body(request, limits)), limits, self.settings.allowed, self._placeholders
            )
            await asyncio.to_thread(chat.bring, limits)
            waiting = self._wait(
                request, lambda job: self.comparer.compare(chat, choice, sampling, lambda: job.unwanted)
            )
            undo.callback(waiting.close)
            return JSONResponse((await waiting.end()).result)

    async def _example(self, request: Request) -> Response:
        image, question = await asyncio.to_thread(example)
        return JSONResponse({"image": as_data_url(image), "question": question})

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[ExitStack]:
        """A place in the server, given back at the end of the stack that is handed out."""
        with ExitStack() as undo:
            undo.callback(self.worker.admit().release)
            yield undo

    def _wait(self, request: Request, work: Callable[[Job], Any]) -> Waiting:
        about = request.scope["vtc"]
        return Waiting(self.worker, Job(about["id"], work, about["arrived"] + self.settings.limits.seconds), request)

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._about()]})

    async def _model(self, request: Request) -> Response:
        if request.url.path.removeprefix(MODEL) != self.settings.name:
            raise Refusal(f"there is no such model here: {self.settings.name} is served", 404, code="model_not_found")
        return JSONResponse(self._about())

    def _about(self) -> dict[str, Any]:
        """The model as ``/v1/models`` lists it, with what requests may ask for."""
        allowed, limits = self.settings.allowed, self.settings.limits
        offered = {
            "pruner": allowed.default.pruner,
            "keep": allowed.default.keep,
            "pruners": list(allowed.settings),
            "pruners_with_parameters": sorted(allowed.free),
            "pruners_without_keep": [text for text in allowed.settings if not can_be_told(text)],
            "unpruned": allowed.unpruned,
            "min_keep": allowed.low,
            "max_keep": allowed.high,
            "max_tokens": limits.max_tokens,
            "pictures": limits.pictures,
            "remote_pictures": limits.remote_pictures,
        }
        return {
            "id": self.settings.name,
            "object": "model",
            "created": self._created,
            "owned_by": "vtc",
            "vtc": offered,
        }

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        text, kind = self.metrics.text()
        return Response(text, media_type=kind)

    async def _page(self, request: Request) -> Response:
        text, policy = page()
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})


class EventStream(StreamingResponse):
    """A stream that undoes what was done for it once it is over, also where it never began."""

    def __init__(self, parts: AsyncIterator[bytes], undo: ExitStack):
        super().__init__(self._all(parts), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._undo, self._whole = undo, False

    async def _all(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for part in parts:
            yield part
        self._whole = True

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it.

        Raises
        ------
        ClientGone
            If the client left before its end.
        """
        with self._undo:
            with suppress(ClientDisconnect):
                await super().__call__(scope, receive, send)
            if not self._whole:
                raise ClientGone
