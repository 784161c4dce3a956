"""The model with its processor, on the one thread that runs it: a method set up, a prompt fed, an answer generated."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import StoppingCriteriaList

from vtc.api import compress, restore
from vtc.eval.cost.prefill_cost import Measured
from vtc.eval.vlm.encode_once import core_of, to_device
from vtc.eval.vlm.loading import Loaded
from vtc.eval.vlm.prompts import message_inputs, pad_id, visual_token_ids
from vtc.serve.requests.chat_request import Sampling
from vtc.serve.requests.limits import Limits
from vtc.serve.requests.messages import Chat
from vtc.serve.requests.pruning_choice import UNPRUNED, Choice
from vtc.serve.requests.refusal import Refusal

from .drawing import answer_length, drawing, seeded
from .text_stream import TextStream
from .token_watch import Ends, Watch

log = logging.getLogger("vtc.serve")


class Stopped(Exception):
    """The answer is not wanted any more."""


@dataclass
class Generated:
    """An answer and what it took.

    ``times`` are the clock's (``time.monotonic``) when each token was there, ``began`` when its prompt was ready;
    ``finish`` is ``"stop"`` or ``"length"``; ``report`` is vtc's, None of the unpruned model.
    """

    text: str
    prompt_tokens: int
    tokens: int
    finish: str
    measured: Measured
    began: float
    times: list[float] = field(repr=False)
    report: Any = field(default=None, repr=False)


class Engine:
    """One model under changing methods; all of it is used by one thread."""

    def __init__(self, loaded: Loaded, limits: Limits, positions: str = "keep"):
        self.loaded, self.limits, self.positions = loaded, limits, positions
        self.model: Any = loaded.model
        self.processor = loaded.processor
        self.tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
        text = core_of(self.model).config.get_text_config()
        self.depth = int(text.num_hidden_layers)
        self.context = min(limits.prompt_tokens, int(getattr(text, "max_position_embeddings", None) or 1 << 30))
        self._now: Choice | None = None

    def set_up(self, choice: Choice) -> None:
        """Have the model run under `choice`.

        Raises
        ------
        NotImplementedError, TypeError, ValueError
            If the method can't run on this model; the model is the stock one then.
        """
        if self._now is not None and choice.spec == self._now.spec:
            return
        self._now = None
        restore(self.model)
        if choice.spec != UNPRUNED:
            compress(self.model, choice.spec, positions=self.positions, tokenizer=self.processor)
        self._now = choice

    def inputs_of(self, chat: Chat) -> dict[str, Any]:
        """A chat as the model's inputs, on its device.

        Raises
        ------
        Refusal
            If the model's template or processor does not take it, or it is too long.
        """
        messages = chat.for_template(self.limits)
        try:
            inputs = message_inputs(self.processor, messages)
        except TemplateError:
            raise Refusal("this model's chat template does not take messages of these roles in this order") from None
        except ValueError:
            log.exception("a prompt that the processor refused")
            raise Refusal("this model's processor can't make a prompt of these texts and pictures") from None
        length = inputs["input_ids"].shape[1]
        if length >= self.context:
            raise Refusal(
                f"the prompt has {length} tokens, its pictures' included; with an answer at most {self.context} fit",
                param="messages",
                code="context_length_exceeded",
            )
        return {name: to_device(value, self.model) for name, value in inputs.items()}

    def generate(
        self,
        inputs: dict[str, Any],
        choice: Choice,
        sampling: Sampling,
        on_text: Callable[[str], None] = lambda text: None,
        unwanted: Callable[[], bool] = lambda: False,
    ) -> Generated:
        """Answer a prompt under `choice`.

        Parameters
        ----------
        on_text : callable
            Given the text, piece by piece.
        unwanted : callable
            Asked after every token; true ends the answer.

        Raises
        ------
        Refusal
            If the method can't run on this model or prompt, or the answer would not fit.
        Stopped
            If it was unwanted.
        """
        prompt = inputs["input_ids"].shape[1]
        room = self.context - prompt
        for name in ("max_tokens", "min_tokens"):
            asked = getattr(sampling, name) or 0
            if asked > room:
                raise Refusal(
                    f"{name}={asked} does not fit behind a prompt of {prompt} tokens: {room} are left",
                    param=name,
                    code="context_length_exceeded",
                )
        most = sampling.max_tokens or min(self.limits.max_tokens, room)
        with self._refusals(choice):
            self.set_up(choice)
            stream = TextStream(self.tokenizer, sampling.stop, sampling.min_tokens)
            watch, began = Watch(stream, on_text), time.monotonic()
            ends = Ends(lambda: stream.stopped or unwanted())
            with torch.no_grad(), seeded(sampling.seed):
                self.model.generate(
                    **inputs,
                    **drawing(sampling),
                    **answer_length(sampling, most),
                    num_beams=1,
                    pad_token_id=pad_id(self.processor),
                    use_cache=True,
                    streamer=watch,
                    stopping_criteria=StoppingCriteriaList([ends]),
                )
        at_end = not sampling.ignore_eos and self._is_end(stream.ids)
        if unwanted() and not stream.stopped and len(stream.ids) < most and not at_end:
            raise Stopped
        on_text(stream.finish())
        ended = stream.stopped or at_end or len(stream.ids) < most
        handle = getattr(self.model, "vtc", None)
        return Generated(
            stream.text,
            prompt,
            len(stream.ids),
            "stop" if ended else "length",
            self._measured(inputs["input_ids"]),
            began,
            watch.times,
            None if handle is None else handle.report,
        )

    def _measured(self, ids: Tensor) -> Measured:
        """Visual tokens of the prefill that just ran."""
        handle = getattr(self.model, "vtc", None)
        if handle is not None:
            return Measured.from_report(handle.report, 0, self.depth)
        places = torch.tensor(visual_token_ids(self.model.config), device=ids.device)
        return Measured.unpruned(int(torch.isin(ids, places).sum()), self.depth)

    def _is_end(self, ids: list[int]) -> bool:
        ends = self.model.generation_config.eos_token_id
        return bool(ids) and ids[-1] in (ends if isinstance(ends, list) else [ends])

    @contextmanager
    def _refusals(self, choice: Choice) -> Iterator[None]:
        """Tell the client in words of ours what the model could not do; the log has the rest."""
        try:
            yield
        except torch.OutOfMemoryError:
            log.exception("out of memory")
            torch.cuda.empty_cache()
            raise Refusal(
                "this request needs more memory than the server has: send less or smaller pictures", 503
            ) from None
        except NotImplementedError:
            if choice.pruner is None:
                raise
            log.exception("%s can't run", choice.spec)
            raise _not_possible(
                f"{choice.pruner} can't run on this model and request (the server's log says why): take another method"
            ) from None
        except (TypeError, ValueError):
            if self._now is not None or choice.pruner is None:  # not while the method was set up
                raise
            log.exception("%s can't be set up", choice.spec)
            raise _not_possible(
                f"{choice.pruner} can't be set up on this model with these parameters (the server's log says why)"
            ) from None


def _not_possible(why: str) -> Refusal:
    return Refusal(why, param="vtc.pruner", code="pruner_not_possible")
