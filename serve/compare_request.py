"""The body of a comparison: one picture, one question, a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vtc.serve.requests.chat_request import Sampling
from vtc.serve.requests.fields import number_of, shown, text_of
from vtc.serve.requests.limits import Limits
from vtc.serve.requests.messages import Chat, read_messages
from vtc.serve.requests.pruning_choice import Allowed, Choice
from vtc.serve.requests.refusal import Refusal

FIELDS = ("image", "question", "max_tokens", "vtc")
LONGEST = 64  # tokens of an answer where the request does not say it


def read_compare_request(
    given: Mapping[str, Any], limits: Limits, allowed: Allowed, placeholders: Sequence[str]
) -> tuple[Chat, Choice, Sampling]:
    """The chat, the method beside the unpruned model, and how both are answered: greedily.

    Raises
    ------
    Refusal
        Naming the field that is wrong.
    """
    odd = [key for key in given if key not in FIELDS]
    if odd:
        raise Refusal(f"there is no field {shown(odd[0])}: {', '.join(FIELDS)} are known", param=odd[0][:60])
    if not allowed.unpruned:
        raise Refusal("the unpruned model is not offered here, so there is nothing to compare with", 403)
    question = text_of(given.get("question"), "question")
    if not question.strip():
        raise Refusal("question is empty", param="question")
    picture = {"type": "image_url", "image_url": {"url": text_of(given.get("image"), "image")}}
    content = [picture, {"type": "text", "text": question}]
    chat = read_messages([{"role": "user", "content": content}], limits, placeholders)
    chat.pictures[0].name = "image"
    choice = allowed.choose(given.get("vtc"))
    if choice.pruner is None:
        raise Refusal("vtc.pruner must name a method to compare with the unpruned model", param="vtc.pruner")
    most = number_of(given, "max_tokens", 1, limits.max_tokens, min(LONGEST, limits.max_tokens), whole=True)
    return chat, choice, Sampling(temperature=0, max_tokens=most)
