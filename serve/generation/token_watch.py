"""What ``generate`` is given to look at every token: one that hands it on, and one that may end the answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from .text_stream import TextStream


class Watch(BaseStreamer):
    """Hands every token on as it comes, and notes when."""

    def __init__(self, stream: TextStream, on_text: Callable[[str], None]):
        self.times: list[float] = []
        self._stream, self._on_text, self._prompt = stream, on_text, True

    def put(self, value: Tensor) -> None:
        """The prompt, then one token at a time."""
        if self._prompt:
            self._prompt = False
            return
        for token in value.flatten().tolist():
            self.times.append(time.monotonic())
            text = self._stream.add(token)
            if text:
                self._on_text(text)

    def end(self) -> None:
        """Nothing is held back here."""


class Ends(StoppingCriteria):
    """Ends the answer when `ended` says so."""

    def __init__(self, ended: Callable[[], bool]):
        self._ended = ended

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """`[B]`: whether each row is at its end."""
        return torch.full((input_ids.shape[0],), self._ended(), dtype=torch.bool, device=input_ids.device)
