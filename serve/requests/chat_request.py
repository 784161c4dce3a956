"""The body of a chat completion: what is supported is read, everything else refused in words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .fields import flag_of, number_of, object_of, shown, text_of
from .limits import Limits
from .messages import Chat, read_messages
from .pruning_choice import Allowed, Choice
from .refusal import Refusal

READ = {
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed", "n", "stream",
    "stream_options", "ignore_eos", "min_tokens", "vtc",
}  # fmt: skip
# fields that say nothing to the model: who asks, and what for
UNREAD = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
# fields that change answers, with the values at which they change nothing
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "reasoning_effort": ("none",),
}
STOPS, STOP_CHARS = 4, 100


@dataclass(frozen=True)
class Sampling:
    """How the answer's tokens are drawn.

    Attributes
    ----------
    temperature, top_p : float, optional
        As the model's own generation settings have it where left out; a temperature of 0 takes the likeliest token.
    seed : int, optional
        Two requests with the same one are drawn alike.
    stop : tuple of str
        The answer ends before the first of these.
    max_tokens : int, optional
        Longest answer; as far as the server and the model go where left out.
    min_tokens : int
        The answer has no end, and no stop is looked for, before so many tokens.
    ignore_eos : bool
        The model's own end is a token like any other: the answer goes on until it is as long as it may be.
    """

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False


@dataclass(frozen=True)
class ChatRequest:
    """One chat completion that may be answered."""

    chat: Chat
    sampling: Sampling
    choice: Choice
    stream: bool = False
    usage_in_stream: bool = False


def parse_json(body: bytes) -> Mapping[str, Any]:
    """A request's body as an object."""
    try:
        found = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Refusal("the body is no valid JSON") from None
    return object_of(found, "the body")


def _no_number(text: str) -> Any:
    raise ValueError(text)


def check_model(given: Mapping[str, Any], name: str) -> None:
    """Refuse a request for another model than the one that is served."""
    asked = text_of(given.get("model"), "model")
    if asked != name:
        raise Refusal(f"there is no model {shown(asked)} here: {name} is served", 404, "model", "model_not_found")


def read_chat_request(
    given: Mapping[str, Any], name: str, limits: Limits, allowed: Allowed, placeholders: Sequence[str] = ()
) -> ChatRequest:
    """The request that `given`, a body's object, makes to the model `name`.

    Raises
    ------
    Refusal
        For a field that is not supported, and a value that is out of range.
    """
    check_model(given, name)
    _check_fields(given)
    stream = flag_of(given, "stream")
    options = {} if given.get("stream_options") is None else object_of(given["stream_options"], "stream_options")
    if options and not stream:
        raise Refusal("stream_options goes with stream: true", param="stream_options")
    odd = [key for key in options if key not in ("include_usage", "include_obfuscation")]
    if odd:
        raise Refusal(f"stream_options has no field {shown(odd[0])}: include_usage is known", param="stream_options")
    number_of(given, "n", 1, 1, whole=True)
    return ChatRequest(
        read_messages(given.get("messages"), limits, placeholders),
        read_sampling(given, limits),
        allowed.choose(given.get("vtc")),
        stream,
        flag_of(options, "include_usage"),
    )


def read_sampling(given: Mapping[str, Any], limits: Limits) -> Sampling:
    """How an answer is drawn, as a body says it."""
    longest = [number_of(given, key, 1, math.inf, whole=True) for key in ("max_completion_tokens", "max_tokens")]
    asked = longest[0] if longest[0] is not None else longest[1]
    if asked is not None and asked > limits.max_tokens:
        raise Refusal(f"max_tokens={asked} is out of range: at most {limits.max_tokens} here", param="max_tokens")
    least, most = number_of(given, "min_tokens", 0, math.inf, 0, whole=True), asked or limits.max_tokens
    if least > most:
        raise Refusal(f"min_tokens={least} is out of range: at most {most}, the longest answer", param="min_tokens")
    top_p = number_of(given, "top_p", 0, 1)
    if top_p == 0:
        raise Refusal("top_p=0 leaves no token: temperature 0 takes the likeliest one", param="top_p")
    return Sampling(
        number_of(given, "temperature", 0, 2),
        top_p,
        number_of(given, "seed", -(2**63), 2**63 - 1, whole=True),
        _stops(given.get("stop")),
        asked,
        least,
        flag_of(given, "ignore_eos"),
    )


def _check_fields(given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if key in READ or key in UNREAD or value is None:
            continue
        if key not in NEUTRAL:
            raise Refusal(f"{shown(key)} is not supported here: leave it out", param=key[:60], code="unsupported_field")
        if not any(
            value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in NEUTRAL[key]
        ):
            raise Refusal(
                f"{key}={shown(value)} is not supported here: leave it out", param=key, code="unsupported_field"
            )


def _stops(given: Any) -> tuple[str, ...]:
    if given is None:
        return ()
    found = [given] if isinstance(given, str) else given
    if not isinstance(found, list) or len(found) > STOPS or not all(isinstance(s, str) for s in found):
        raise Refusal(f"stop must be a string or a list of at most {STOPS} strings", param="stop")
    if not all(1 <= len(s) <= STOP_CHARS for s in found):
        raise Refusal(f"each stop must have 1 to {STOP_CHARS} characters", param="stop")
    return tuple(text_of(s, "stop") for s in found)
