"""Who waits, who is sent away, and that a client who leaves frees its place."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from PIL import Image
from serving import PATIENCE, Running, asking, never_ending, running, until

from vtc.serve.requests.limits import Limits

MESSAGES = asking("what color?", Image.new("RGB", (64, 64), "red"))
LONG: dict[str, Any] = {"model": "bundled", "messages": MESSAGES, "temperature": 0, "max_tokens": 1400}
SHORT = {**LONG, "max_tokens": 2}


@pytest.fixture(scope="module")
def site() -> Iterator[Running]:
    """One that goes on for seconds, and takes three requests at a time."""
    with running(limits=Limits(queue=2, max_tokens=1400, seconds=50)) as found:
        never_ending(found.server)
        yield found


def metric(site: Running, name: str) -> float:
    lines = httpx.get(f"{site.url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])


def test_too_many_are_told_when_to_come_back(site: Running) -> None:
    worker, client = site.server.worker, site.client()
    streams = [client.chat.completions.create(**LONG, stream=True)]  # answered from here on
    try:
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(client.chat.completions.create, **SHORT) for _ in range(2)]
            until(lambda: worker.waiting == 2)
            assert metric(site, "vtc_queue_depth ") == 2
            assert metric(site, "vtc_running ") == 1
            with pytest.raises(openai.RateLimitError, match="try again in") as refused:
                client.chat.completions.create(**SHORT)
            assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
            assert refused.value.code == "queue_full"
            with pytest.raises(openai.RateLimitError):
                client.chat.completions.create(**SHORT, stream=True)
            streams[0].close()  # its client leaves, and those behind it are answered
            assert [w.result().usage.completion_tokens for w in waiting] == [2, 2]
    finally:
        streams[0].close()
    until(lambda: worker.held == 0)
    assert metric(site, 'vtc_refused_total{reason="queue_full"}') == 2


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_an_answer_that_nobody_waits_for_is_stopped(site: Running, stream: bool) -> None:
    worker, generated = site.server.worker, metric(site, "vtc_generated_tokens_total")
    gone, began = metric(site, "vtc_clients_gone_total"), time.monotonic()
    client = site.client()
    if stream:
        answer = client.chat.completions.create(**LONG, stream=True)
        next(iter(answer))
        answer.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.7).chat.completions.create(**LONG)
    until(lambda: not worker.running and worker.held == 0, 5)
    assert site.client().chat.completions.create(**SHORT).usage.completion_tokens == 2
    assert metric(site, "vtc_generated_tokens_total") - generated == 2  # nothing of the long one
    until(lambda: metric(site, "vtc_clients_gone_total") == gone + 1, 5)
    assert time.monotonic() - began < 8


def test_a_client_that_leaves_the_queue_is_not_answered(site: Running) -> None:
    worker, client = site.server.worker, site.client()
    with client.chat.completions.create(**LONG, stream=True) as first:
        next(iter(first))
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.5).chat.completions.create(**SHORT)
        until(lambda: worker.waiting == 0 and worker.held == 1, 5)
    until(lambda: worker.held == 0 and not worker.running, 5)


def test_a_request_takes_no_longer_than_it_may(site: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    settings = replace(site.server.settings, limits=replace(site.server.settings.limits, seconds=1.0))
    monkeypatch.setattr(site.server, "settings", settings)
    with pytest.raises(openai.InternalServerError, match="took longer") as late:
        site.client().chat.completions.create(**LONG)
    assert (late.value.status_code, late.value.code) == (504, "timeout")
    parts = []
    with pytest.raises(openai.APIError, match="took longer"):  # noqa: PT012
        for chunk in site.client().chat.completions.create(**LONG, stream=True):
            parts.append(chunk.choices[0].delta.content or "")
    assert "".join(parts)  # what came in time was sent
    until(lambda: site.server.worker.held == 0, 5)


@pytest.mark.parametrize("stream", [True, False])
def test_the_end_of_the_server_ends_what_runs(stream: bool) -> None:
    failed: list[Any] = []

    def ask(client: openai.OpenAI) -> None:
        try:
            for _ in client.chat.completions.create(**LONG, stream=stream):
                pass
        except (openai.APIError, httpx.HTTPError) as error:
            failed.append(error)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vtc.serve.run_server.GRACE", 1)
        with running(limits=Limits(max_tokens=1400)) as site:
            never_ending(site.server)
            client = threading.Thread(target=ask, args=[site.client()])
            client.start()
            until(lambda: site.server.worker.running)
            began = time.monotonic()
        assert time.monotonic() - began < 15
        client.join(PATIENCE)
    assert len(failed) == 1
    if not stream:  # nothing of an answer was sent yet
        assert (failed[0].status_code, failed[0].code) == (503, "stopping")
