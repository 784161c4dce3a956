"""Requests that must be answered as when they are alone: texts, pictures, several of them, turns, streamed or not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from vtc.eval.load.prompts import FAST
from vtc.eval.tasks.media.images import as_data_url
from vtc.eval.tasks.questions import TaskSet


@dataclass(frozen=True)
class Answer:
    """What has to be the same: the text, why it ended, and the tokens counted."""

    text: str
    finish: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True)
class Good:
    """A request's body, and whether its answer is streamed."""

    body: dict[str, Any]

    @property
    def streamed(self) -> bool:
        """Whether the answer comes in events."""
        return bool(self.body.get("stream"))

    @property
    def data(self) -> bytes:
        """As it is sent."""
        return json.dumps(self.body).encode()


def good_requests(
    tasks: TaskSet, model: str, bodies: Sequence[Mapping[str, Any]], count: int, max_tokens: int = 8
) -> list[Good]:
    """`count` different requests that take turns in shape and in `bodies`, what is added to them."""
    groups = [group for group in tasks.groups() if group[0].kind == "image" and len(group[0].media) == 1]
    found = []
    for i in range(count):
        asked, other = groups[i % len(groups)][0], groups[(i + 1) % len(groups)][0]
        parts = [_picture(tasks, asked.media[0])]
        if i % 4 == 1:
            parts.append(_picture(tasks, other.media[0]))
        if i % 4 == 2:
            parts = []
        turns = [{"role": "user", "content": [*parts, {"type": "text", "text": f"{asked.question} ({i})"}]}]
        if i % 4 == 3:
            turns += [
                {"role": "assistant", "content": asked.answer},
                {"role": "user", "content": other.question},
            ]
        body = {"model": model, "messages": turns, "temperature": 0, "max_tokens": max_tokens}
        if (i // 4) % 2:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        found.append(Good({**body, **bodies[i % len(bodies)]}))
    return found


def _picture(tasks: TaskSet, media: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": as_data_url(tasks.image(media).convert("RGB"), FAST)}}


def read_answer(good: Good, response: httpx.Response) -> Answer:
    """The answer of a response that says 200.

    Raises
    ------
    ValueError
        If it is cut off, holds an error, or is none.
    """
    try:
        if not good.streamed:
            found = response.json()
            choice = found["choices"][0]
            return _answer(choice["message"]["content"], choice["finish_reason"], found.get("usage"))
        lines = [line[5:].strip() for line in response.text.splitlines() if line.startswith("data:")]
        if not lines or lines[-1] != "[DONE]":
            raise ValueError("the stream was cut off")
        text, finish, usage = "", None, None
        for line in lines[:-1]:
            event = json.loads(line)
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                finish = choice.get("finish_reason") or finish
        return _answer(text, finish, usage)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no answer: {type(error).__name__} {error} in {response.text[:200]!r}") from None


def _answer(text: str, finish: str | None, usage: Mapping[str, Any] | None) -> Answer:
    counts = usage or {}
    return Answer(text or "", finish, counts.get("prompt_tokens"), counts.get("completion_tokens"))
