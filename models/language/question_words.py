"""The text of a prompt behind its pictures: as words, and what the language model makes of it alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vtc.models.layout.model_parts import Parts
from vtc.models.stock.call_arguments import given, takes
from vtc.pruners.signals import QuestionState

from .forward_state import Run

STOP = "ASSISTANT"  # Vicuna's template goes on with it
NONE = "image"  # what is asked where nothing is


def behind_pictures(run: Run) -> list[Tensor]:
    """Ids of each sample behind its last visual token, on the CPU; of one without pictures all.

    Raises
    ------
    ValueError
        If the model was called with embeddings instead of token ids.
    """
    if run.token_ids is None:
        raise ValueError(
            "this method reads the question's words, but the model was called without input_ids (inputs_embeds only): "
            "pass input_ids, or take a method that needs no words"
        )
    ends = [0] * len(run.token_ids)
    columns = run.batch.columns.cpu()
    for i, span in enumerate(run.batch.spans):
        ends[span.sample] = max(ends[span.sample], int(columns[i, run.batch.lengths[i] - 1]) + 1)
    ids, valid = run.token_ids.cpu(), run.valid.cpu()
    stop = ids.shape[1] if run.prompt is None else max(0, run.prompt - run.past)
    return [ids[b, end:stop][valid[b, end:stop]] for b, end in enumerate(ends)]


def questions(run: Run) -> list[str]:
    """The text of each sample behind its last visual token, without special tokens.

    Notes
    -----
    Reads token ids off the device. Words of a chat template that are no special tokens (``ASSISTANT:``) stay; a
    sample without pictures gives its whole text; candidates of assisted decoding are left out.

    Raises
    ------
    ValueError
        If the model was called with embeddings instead of token ids, or no tokenizer is there, or the method did not
        say ``uses_question``.
    """
    if run.words is None:
        raise ValueError("questions() is for methods that declare uses_question = True, so nothing was kept for it")
    if run.questions is None:
        real = behind_pictures(run)
        tokenizer = run.words.find()
        run.questions = [tokenizer.decode(r, skip_special_tokens=True).strip() for r in real]
    return run.questions


def question_alone(ids: Tensor, tokenizer: Any) -> str:
    """The first question in `ids`: up to ``ASSISTANT`` or the end token, ``"image"`` where there is none."""
    text = str(tokenizer.decode(ids, skip_special_tokens=False))
    for end in (STOP, getattr(tokenizer, "eos_token", None)):
        text = text.partition(end)[0] if end else text
    for special in getattr(tokenizer, "all_special_tokens", ()):
        text = text.replace(special, " ")
    return text.strip() or NONE


def question_states(run: Run, parts: Parts, signal: QuestionState) -> Tensor:
    """``QuestionState`` `[S, D]` of the samples of `run`, made once a forward.

    Notes
    -----
    The module's ``forward`` and not the module, so that no hook of its own runs; those of layers do nothing before a
    run. Questions that come twice are read once; shorter ones are padded behind, where a causal model does not look.

    Raises
    ------
    ValueError
        If there are no token ids, no tokenizer or no token to ask.
    NotImplementedError
        If the text model can't be run on ids alone.
    """
    if signal not in run.captured:
        asked = _ids(run, parts, signal)
        samples = sorted({span.sample for span in run.batch.spans})
        distinct = list(dict.fromkeys(asked[b] for b in samples))
        found = _last_states(parts, distinct, run.columns.device)
        place = {ids: i for i, ids in enumerate(distinct)}
        states = found.new_zeros(len(asked), found.shape[-1])
        states[samples] = found[[place[asked[b]] for b in samples]]
        run.captured[signal] = states, states
        run.asked_alone = {b: len(asked[b]) for b in samples}
    return run.captured[signal][0]


def _ids(run: Run, parts: Parts, signal: QuestionState) -> list[tuple[int, ...]]:
    """What is read of each sample, BOS first."""
    rows = behind_pictures(run)
    if signal.of == "ids":
        start = getattr(parts.lm.config.get_text_config(), "bos_token_id", None)
        found = [tuple(row.tolist()) for row in rows]
    else:
        assert run.words is not None
        tokenizer: Any = run.words.find()
        start = getattr(tokenizer, "bos_token_id", None)
        words = [question_alone(row, tokenizer) for row in rows]
        found = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in words]
    asked = [(start, *ids) if isinstance(start, int) else ids for ids in found]
    if not all(asked):
        raise ValueError(
            "a question has no token of its own, and the model no BOS token: ask something behind the picture"
        )
    return asked


@torch.no_grad()
def _last_states(parts: Parts, asked: list[tuple[int, ...]], device: torch.device) -> Tensor:
    """`[n, D]`: the last state of each of `asked`."""
    lm = parts.lm
    if takes(lm, "token types"):
        raise NotImplementedError(f"{type(lm).__name__} can't be asked a question alone: it is told each token's kind")
    ids = pad_sequence([torch.tensor(row, device=device) for row in asked], batch_first=True)
    try:
        states: Tensor = lm.forward(**given(lm, **{"ids": ids, "use cache": False})).last_hidden_state
    except (TypeError, AttributeError, ValueError) as error:
        raise NotImplementedError(f"{type(lm).__name__} can't be asked a question alone: {error}") from error
    last = torch.tensor([len(row) - 1 for row in asked], device=states.device)
    return states[torch.arange(len(asked), device=states.device), last]
