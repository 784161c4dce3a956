"""The contracts of generation beyond one greedy answer: a second turn on the pruned cache, beam search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vtc.models.stock.call_arguments import given

from .comparisons import TOLERANCE, NothingToSee, Wrong, chosen, close
from .masked_reference import TYPE_INPUTS, greedy
from .model_under_test import Setting, Subject

BEAMS = 3
REPLY = [7, 8, 9, 10]


def second_turn(shape: str) -> Callable[[Subject, Setting], float]:
    """A text-only second turn on the pruned cache sees what the reference sees over the whole dialogue."""

    def contract(subject: Subject, setting: Setting) -> float:
        n = min(subject.tokens, 4)
        pruned, plain = subject.pruned(setting, shape), subject.plain(shape)
        width = subject.prompts[shape].inputs["input_ids"].shape[1]
        positions = _further(plain.positions[..., : width + n - 1], len(REPLY) + n)
        with setting.compressed(subject.model):
            tokens, logits = _two_turns(subject, subject.model, shape, n)
        truth = subject.truth_of(pruned, shape, tokens, positions)[:, -n:]
        try:
            chosen(subject, truth, tokens[:, -n:], "second turn")
            return close(logits, truth, "second turn")
        except Wrong:
            untouched = replace(pruned, hidden=torch.zeros_like(pruned.hidden), vectors={}, features={})
            tokens, logits = _two_turns(subject, subject.truth.model, shape, n)
            try:
                close(logits, subject.truth_of(untouched, shape, tokens, positions)[:, -n:], "second turn")
            except Wrong as error:
                raise NothingToSee(
                    f"the untouched model's own second turn is not that of its dialogue: {error}"
                ) from None
            raise

    return contract


def _two_turns(subject: Subject, model: Any, shape: str, n: int) -> tuple[Tensor, Tensor]:
    """Tokens behind the prompt of two turns, `n` generated in each, and the logits `[B, n, V]` of the last ones."""
    inputs = subject.prompts[shape].inputs
    width = inputs["input_ids"].shape[1]
    first = greedy(model, inputs, n, subject.special)
    ids = torch.cat([first.sequences, torch.tensor([REPLY]).expand(len(first.sequences), -1)], 1)
    text = {k: v for k, v in inputs.items() if k in ("attention_mask", *TYPE_INPUTS)}
    kinds = {"attention_mask": 1, **dict.fromkeys(TYPE_INPUTS, subject.prompts.kind.answered)}
    fill = {k: v.new_full((len(v), ids.shape[1] - width), kinds[k]) for k, v in text.items()}
    text = {k: torch.cat([v, fill[k]], 1) for k, v in text.items()}
    second = greedy(model, {**text, "input_ids": ids}, n, subject.special, **given(model, cache=first.cache))
    return torch.cat([ids[:, width:], second.tokens], 1), second.logits


def _further(positions: Tensor, n: int) -> Tensor:
    """`positions` with as many more, counting on."""
    more = positions[..., -1:] + torch.arange(1, n + 1)
    return torch.cat([positions, more], -1)


def _beam_search(subject: Subject, inputs: dict[str, Any], n: int) -> Any:
    """All beams of a search over `n` tokens, with their scores."""
    settings = {"num_beams": BEAMS, "num_return_sequences": BEAMS, "do_sample": False, "length_penalty": 0.0}
    return subject.model.generate(
        **inputs,
        **settings,
        max_new_tokens=n,
        suppress_tokens=list(subject.special),
        return_dict_in_generate=True,
        output_scores=True,
    )


def beams(shape: str) -> Callable[[Subject, Setting], float]:
    """Beam search: the score of every beam is the reference's log-probability of its tokens."""

    def contract(subject: Subject, setting: Setting) -> float:
        inputs, pruned = subject.prompts[shape].inputs, subject.pruned(setting, shape)
        width, n = inputs["input_ids"].shape[1], subject.length(shape)
        try:
            with setting.compressed(subject.model):
                out = _beam_search(subject, inputs, n)
        except Exception:
            try:
                _beam_search(subject, subject.prompts[shape].inputs, n)
            except Exception as error:
                raise NothingToSee(f"the untouched model's own beam search fails: {error}") from None
            raise
        worst = 0.0
        for j in range(BEAMS):
            tokens = out.sequences[j::BEAMS, width:]
            logits = subject.truth_of(pruned, shape, tokens)[:, width - 1 :]
            score = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0].sum(-1)
            off = (score - out.sequences_scores[j::BEAMS]).abs().nan_to_num(float("inf"))
            worst = max(worst, float(off.max()))
            if worst > 2 * n * TOLERANCE * float(logits.abs().max()):
                row = int(off.argmax())
                raise Wrong(f"beam {j} of row {row}: its score is off by {worst:.2g}", worst)
        return worst

    return contract
