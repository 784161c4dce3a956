"""Answers in the shape of OpenAI's chat completions, whole and as a stream's chunks."""

from __future__ import annotations

import json
import time
from typing import Any

from vtc.serve.generation.engine import Generated
from vtc.serve.requests.pruning_choice import Choice


def usage_of(found: Generated, choice: Choice) -> dict[str, Any]:
    """Tokens of the prompt with all its visual tokens, of the answer, and in ``vtc`` how many of them were kept."""
    return {
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.tokens,
        "total_tokens": found.prompt_tokens + found.tokens,
        "vtc": {
            "visual_tokens_seen": found.measured.total,
            "visual_tokens_kept": found.measured.kept,
            "visual_tokens_per_layer": round(found.measured.mean, 1),
            "pruner": choice.pruner,
            "keep": choice.keep,
        },
    }


class ChatAnswer:
    """One answer's id and date, which all its parts carry."""

    def __init__(self, request_id: str, model: str):
        self.request_id = request_id
        self._head = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": model}

    def whole(self, found: Generated, choice: Choice) -> dict[str, Any]:
        """A chat completion."""
        message = {"role": "assistant", "content": found.text, "refusal": None}
        answer = {"index": 0, "message": message, "logprobs": None, "finish_reason": found.finish}
        return {**self._head, "object": "chat.completion", "choices": [answer], "usage": usage_of(found, choice)}

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        """A part of a streamed completion, as an event."""
        part = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**self._head, "object": "chat.completion.chunk", "choices": [part]})

    def usage_chunk(self, found: Generated, choice: Choice) -> bytes:
        """The last chunk of those who asked for usage."""
        return event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage_of(found, choice)})


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


END = b"data: [DONE]\n\n"
