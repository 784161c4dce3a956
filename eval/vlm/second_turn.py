"""A second question about the same picture, as people chat: behind the first one and its answer."""

from __future__ import annotations

from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from .prompts import chat_text

MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


def behind_first(processor: Any, first: str, answer: str, second: str) -> Tensor:
    """What stands between a first prompt and the second answer: the first answer, and the second question.

    Parameters
    ----------
    processor : Any
        The model's.
    first, answer, second : str
        The first question, about one picture; its answer; the second question.

    Returns
    -------
    Tensor
        `[n]` int64, ready for the answer.

    Raises
    ------
    ValueError
        If the chat template does not go on behind a prompt, but writes it anew.
    """
    prompt = chat_text(processor, first)
    whole = _two_turns(processor, first, second)
    if not whole.startswith(prompt) or whole.count(MARK) != 1:
        raise ValueError(
            f"{type(processor).__name__}'s chat template writes a first question otherwise once a second one is asked, "
            "so that can't be asked on its cache"
        )
    text = whole[len(prompt) :].replace(MARK, answer)
    return torch.tensor(processor.tokenizer(text, add_special_tokens=False).input_ids)


def _two_turns(processor: Any, first: str, second: str) -> str:
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": first}]}
    again = {"role": "user", "content": [{"type": "text", "text": second}]}
    for said in ([{"type": "text", "text": MARK}], MARK):  # templates take one or the other
        try:
            chat = [asked, {"role": "assistant", "content": said}, again]
            text: str = processor.apply_chat_template(chat, add_generation_prompt=True)
        except (TemplateError, TypeError):
            continue
        if text.count(MARK) == 1:
            return text
    return ""
