"""A request that waits for its job: what happens to it, or that its client has left."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from vtc.serve.generation.worker import Done, Failed, Job, Text, Worker

from .front import ClientGone


class Waiting:
    """The event loop's side of a job; to be closed whatever happens."""

    def __init__(self, worker: Worker, job: Job, request: Request):
        self._worker, self._job = worker, job
        self._gone = asyncio.ensure_future(_gone(request))
        worker.submit(job)

    async def next(self) -> Text | Done:
        """What happens next.

        Raises
        ------
        Refusal
            If the job failed.
        ClientGone
            If nobody waits any more.
        """
        found = asyncio.ensure_future(self._job.events.get())
        try:
            await asyncio.wait({found, self._gone}, return_when=asyncio.FIRST_COMPLETED)
            if not found.done():
                raise ClientGone
            happened = found.result()
        finally:
            found.cancel()
        if isinstance(happened, Failed):
            raise happened.refusal
        return happened

    async def end(self) -> Done:
        """The job's end; pieces of text before it are passed over."""
        while isinstance(happened := await self.next(), Text):
            pass
        return happened

    def close(self) -> None:
        """Stop the job, if it is not over, and stop looking for the client."""
        self._gone.cancel()
        self._worker.cancel(self._job)


async def _gone(request: Request) -> None:
    """Return when the client has left; its body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
