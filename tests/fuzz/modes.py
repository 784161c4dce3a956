"""The ways to run: what the wrapped model gives in each is held against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from reference import MASK_INPUTS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LogitsProcessor, LogitsProcessorList
from zoo import SPECIAL
from zoo.models import DEPTH
from zoo.tokens import CLOSE

from .case import Case, Disagreement, positions_of, rope_positions
from .oracle import Seen, last_columns, who_answers

SETTINGS: dict[str, Any] = {"suppress_tokens": SPECIAL, "return_dict_in_generate": True, "output_logits": True}


def plain(case: Case, model: nn.Module, **kwargs: Any) -> Any:
    """One forward over the prompt."""
    return model(**case.inputs, use_cache=case.draw.tokens % 2 == 0, **kwargs)


def prefill(case: Case, labels: Tensor | None = None) -> tuple[Any, Seen, Callable[[nn.Module], Tensor], Any]:
    """A forward of the wrapped model: its output, what was seen, the reference's logits, and who answers."""
    given = {} if labels is None else {"labels": labels}
    if case.draw.given:
        given["position_ids"] = positions = positions_of(case.stock, case.inputs)
    with rope_positions(case.stock, len(case.valid)) as found:
        untouched = plain(case, case.stock, **given)
    positions = found[0] if not case.draw.given else positions
    case.compress()
    with case.watched() as look:
        out = plain(case, case.model, **given)
        seen = look()
    keeps_all(case, seen, out.logits, untouched.logits)
    return (
        out,
        seen,
        lambda stock: case.truth(stock, case.inputs, seen, positions),
        who_answers(seen.report, case.valid, case.draw.positions, DEPTH),
    )


def keeps_all(case: Case, seen: Seen, found: Tensor, untouched: Tensor) -> None:
    """Without pictures, or with all of them kept, nothing may change."""
    everything = all(params.get("keep") == 1.0 and isinstance(params["keep"], float) for _, params in case.draw.methods)
    same = case.draw.attention != "flex_attention" and torch.isfinite(untouched).all()
    if same and (everything or not seen.report.spans) and not torch.equal(found, untouched):
        raise Disagreement("all is kept, and yet it differs from the unpruned model")


def forward(case: Case) -> None:
    """Logits of a plain forward, of the columns that are left."""
    out, _, truth, who = prefill(case)
    case.same(out.logits[who.kept], lambda stock: truth(stock)[who.kept], "logits")
    rows = torch.arange(len(case.valid))[who.answer >= 0]
    last = last_columns(case.valid)
    case.same(
        out.logits[rows, last[rows]], lambda stock: truth(stock)[rows, who.answer[rows]], "the last token's logits"
    )


def labels(case: Case) -> None:
    """The loss; labels whose predictor is gone don't count."""
    asked = case.inputs["input_ids"].masked_fill(~case.valid, -100)
    asked = asked.masked_fill(torch.rand(asked.shape, generator=case.generator) < 0.2, -100)
    case_report = Case(case.draw)  # which predictors go is known only afterwards: ask another model first
    _, _, _, who = prefill(case_report)
    asked[:, 1:] = asked[:, 1:].masked_fill(~who.kept[:, :-1], -100)
    asked[:, 0] = -100
    if not (asked >= 0).any():
        return forward(case)
    out, _, truth, again = prefill(case, asked)
    if not torch.equal(who.kept, again.kept):
        raise Disagreement("the same forward kept other tokens the second time")

    def loss(stock: nn.Module) -> Tensor:
        logits = truth(stock)[:, :-1].flatten(0, 1)
        return cross_entropy(logits.float() if logits.dtype.itemsize < 4 else logits, asked[:, 1:].flatten())[None]

    return case.same(out.loss[None], loss, "the loss")


def greedy(case: Case, **kwargs: Any) -> None:
    """Logits of every greedy step; the tokens follow from them."""
    n = case.draw.tokens
    with rope_positions(case.stock, len(case.valid)) as found:
        untouched = case.generate(case.stock, n)
    positions = torch.cat(found, -1)
    case.compress()
    with case.watched() as look:
        out = case.generate(case.model, n, **kwargs)
        seen = look()
    keeps_all(case, seen, out.logits, untouched.logits)
    against(case, seen, positions, out.tokens, out.logits)


def against(
    case: Case, seen: Seen, positions: Tensor, tokens: Tensor, logits: Tensor, rows: list[int] | None = None
) -> None:
    """Logits `[B, n, V]` that `tokens` `[B, n]` were chosen from; `rows` are their rows in what was seen."""

    def truth(stock: nn.Module) -> Tensor:
        return case.answers(case.truth(stock, case.inputs, seen, positions, tokens, rows), seen, case.valid, rows)

    case.same(logits, truth, "the steps' logits")


class Notes(LogitsProcessor):
    """Notes what was seen of the forward before each token."""

    def __init__(self, look: Callable[[], Seen]):
        self.look, self.seen = look, []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(self.look())
        return scores


def no_cache(case: Case) -> None:
    """Without a cache every step prunes anew: each against its own reference."""
    n = case.draw.tokens
    with rope_positions(case.stock, len(case.valid)) as found:
        case.generate(case.stock, n, use_cache=False)
    case.compress()
    with case.watched() as look:
        notes = Notes(look)
        out = case.generate(case.model, n, use_cache=False, logits_processor=LogitsProcessorList([notes]))
    for step, seen in enumerate(notes.seen):
        inputs = extended(case, case.inputs, out.tokens[:, :step])

        def truth(stock: nn.Module, seen: Seen = seen, step: int = step, inputs: dict[str, Any] = inputs) -> Tensor:
            logits = case.truth(stock, inputs, seen, found[step])
            return case.answers(logits, seen, inputs["attention_mask"].bool())[:, 0]

        case.same(out.logits[:, step], truth, f"step {step}")


def extended(case: Case, inputs: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
    """`inputs` with `tokens` `[B, n]` behind them, as ``generate`` puts them there."""
    out = dict(inputs)
    out["input_ids"] = torch.cat([inputs["input_ids"], tokens], 1)
    out["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], 1)
    if "token_type_ids" in inputs:  # the last one is repeated: behind a picture, Gemma3's tokens count to it
        more = inputs["token_type_ids"][:, -1:].expand(tokens.shape)
        return {**out, "token_type_ids": torch.cat([inputs["token_type_ids"], more], 1)}
    return case.with_types(out)


def several(case: Case, **kwargs: Any) -> tuple[Any, Seen, Tensor]:
    """``generate`` of the wrapped model with ``kwargs``; what was seen of the prefill, and the positions."""
    n = case.draw.tokens
    with rope_positions(case.stock, len(case.valid)) as found:
        case.generate(case.stock, n)
    settings = {"max_new_tokens": n, "min_new_tokens": n, **SETTINGS, **kwargs}
    case.unwrapped = lambda: case.stock.generate(**case.inputs, **settings)
    case.compress()
    with case.watched() as look:
        out = case.model.generate(**case.inputs, **settings)
        return out, look(), torch.cat(found, -1)


def sample(case: Case) -> None:
    """Sampled tokens: the logits of each step. Where sequences share a prompt, each row is a copy of it."""
    times, n = case.draw.sequences, case.draw.tokens
    torch.manual_seed(case.draw.seed)
    out, seen, positions = several(case, do_sample=True, num_return_sequences=times)
    tokens, logits = out.sequences[:, -n:], torch.stack(out.logits, 1)
    for copy in range(times):
        rows = list(range(copy, len(tokens), times))
        against(case, seen, positions, tokens[rows], logits[rows], rows)


def beams(case: Case) -> None:
    """The score of the sequences that beam search returns."""
    times, n = case.draw.sequences, case.draw.tokens
    out, seen, positions = several(case, do_sample=False, num_beams=times, output_scores=True)
    tokens = out.sequences[:, -n:]
    rows = list(range(0, len(tokens) * times, times))

    def score(stock: nn.Module) -> Tensor:
        logits = case.answers(case.truth(stock, case.inputs, seen, positions, tokens, rows), seen, case.valid, rows)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        return logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0].mean(1)

    case.same(out.sequences_scores, score, "the beams' scores")


def assisted(case: Case) -> None:
    """Prompt lookup: the logits of each token."""
    n = case.draw.tokens + 4
    with rope_positions(case.stock, 1) as found:
        case.generate(case.stock, n)
    # the end token is suppressed too; transformers < 5.13 needs to have one here
    settings = {"prompt_lookup_num_tokens": case.draw.sequences, "eos_token_id": CLOSE}
    case.unwrapped = lambda: case.generate(case.stock, n, **settings)
    case.compress()
    with case.watched() as look:
        out = case.generate(case.model, n, **settings)
        seen = look()
    against(case, seen, torch.cat(found, -1), out.tokens, out.logits)


def pixels_of(inputs: dict[str, Any]) -> dict[str, Any]:
    """What is neither ids nor masks."""
    return {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask", *MASK_INPUTS)}
