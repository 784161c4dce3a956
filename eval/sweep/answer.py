"""Answers of one model to rows of questions: the plain way, and many questions behind one prefill of their image."""

from __future__ import annotations

import copy
import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtc.eval.cost.prefill_cost import Measured
from vtc.eval.vlm.branching import Branching
from vtc.eval.vlm.encode_once import core_of, encoder_inputs, to_device
from vtc.eval.vlm.layers_before_choice import PrefixStates
from vtc.eval.vlm.prompts import Row, pad_id, pad_rows
from vtc.models.stock.call_arguments import cache_of, given
from vtc.models.stock.transformers_api import keeps_state

from .chunks_and_batches import batches


@dataclass(frozen=True)
class Answer:
    """An answer's text and the visual tokens behind it."""

    text: str
    measured: Measured


def depth_of(model: nn.Module) -> int:
    """Number of decoder layers."""
    return core_of(model).config.get_text_config().num_hidden_layers


def measure(model: nn.Module, samples: Sequence[int], rows: Sequence[Row]) -> list[Measured]:
    """Counts of each row; ``samples[i]`` is its place in the batch of the last prefill."""
    depth = depth_of(model)
    handle = getattr(model, "vtc", None)
    if handle is None:
        return [Measured.unpruned(row.visual, depth) for row in rows]
    return [Measured.from_report(handle.report, sample, depth) for sample in samples]


def generate(model: nn.Module, processor: Any, batch: dict[str, Any], max_new_tokens: int, **more: Any) -> list[str]:
    """The most likely answers to a batch; `more` goes to the model's generate.

    Raises
    ------
    RuntimeError
        If the model fails inside its forward: with what to try.
    """
    batch = {name: to_device(value, model) for name, value in batch.items()}
    pad = pad_id(processor)
    try:
        out = model.generate(  # type: ignore[operator]
            **batch,
            **more,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            use_cache=True,
        )
    except (NotImplementedError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, LookupError, AttributeError) as error:
        if "vtc check" in str(error):
            raise
        raise RuntimeError(
            f"{type(model).__name__} failed inside its forward: {type(error).__name__}: {error}; `vtc check MODEL` "
            "tells whether vtc works with this model and the installed transformers"
        ) from error
    texts = processor.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


@torch.no_grad()
def answer_plain(
    model: nn.Module, processor: Any, rows: Sequence[Row], encoded: Sequence[Any] | None, max_new_tokens: int
) -> list[Answer]:
    """One prefill per question.

    Parameters
    ----------
    rows : sequence of Row
        The batch.
    encoded : sequence, optional
        Each row's vision output (see ``encode``); None runs the tower again.
    """
    batch: dict[str, Any] = dict(pad_rows([r.ids for r in rows], [r.tokens for r in rows], pad_id(processor)))
    if encoded is not None:
        texts = generate(model, processor, batch, max_new_tokens, **encoder_inputs(rows, encoded, model))
        return [Answer(t, m) for t, m in zip(texts, measure(model, range(len(rows)), rows), strict=True)]
    answers = []
    for row in rows:  # pixels of different images don't stack in every family
        text = generate(model, processor, {**row.text, **row.vision}, max_new_tokens)[0]
        answers.append(Answer(text, measure(model, [0], [row])[0]))
    return answers


def shares_prefix(model: nn.Module) -> bool:
    """Whether a model's questions may be answered behind one prefill of their image.

    Not with multi-axis rotary positions, whose models keep the position of the next token outside the cache, and not
    with sliding windows or recurrent layers.
    """
    config = core_of(model).config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return "mrope_section" not in rope and kinds == {"full_attention"} and not keeps_state(config)


@torch.no_grad()
def answer_shared(
    model: nn.Module,
    processor: Any,
    groups: Sequence[Sequence[Row]],
    encoded: Sequence[Any],
    max_new_tokens: int,
    batch_size: int = 16,
    branching: Branching | None = None,
) -> Iterator[list[tuple[Row, Answer]]]:
    """One prefill per IMAGE; every question is a second turn on a copy of its cache, or a branch behind it.

    The same answers as ``answer_plain`` for methods that don't look at the question, because a causal model's visual
    tokens can't see what follows them.

    Parameters
    ----------
    groups : sequence of sequences of Row
        The questions of each image; all prefixes are equally long.
    encoded : sequence
        The vision output of each image.
    batch_size : int
        Questions at once, of whichever of the images.
    branching : Branching, optional
        What answers questions as branches, where the model and the cache allow it.

    Yields
    ------
    list of (Row, Answer)
        Batch by batch.
    """
    pad = pad_id(processor)
    firsts = [group[0] for group in groups]
    output = model(**_heads(model, processor, firsts, encoded), use_cache=True, logits_to_keep=1)
    per_image, prefixes = measure(model, range(len(groups)), firsts), cache_of(output)
    if branching is not None and branching.serves(prefixes, groups[0], functools.partial(_turn, model, prefixes)):
        for told in branching.answer(prefixes, groups, max_new_tokens):
            yield [(row, Answer(text, per_image[i])) for i, row, text in told]
        return
    for same in by_length([(i, row) for i, group in enumerate(groups) for row in group]):
        for batch in batches(same, batch_size):
            rows = [row for _, row in batch]
            inputs = pad_rows([row.ids for row in rows], [row.tokens for row in rows], pad)
            cache = select_cache(prefixes, [i for i, _ in batch])
            texts = generate(model, processor, inputs, max_new_tokens, **given(core_of(model), cache=cache))
            yield [(row, Answer(text, per_image[i])) for (i, row), text in zip(batch, texts, strict=True)]


def _turn(model: nn.Module, prefixes: Any, row: Row) -> Tensor:
    """Logits `[V]` behind a question about the first image of a cache, as a second turn."""
    cache = select_cache(prefixes, [0])
    inputs = {"input_ids": row.ids[None, row.prefix :], "attention_mask": torch.ones_like(row.ids)[None]}
    inputs = {name: to_device(value, model) for name, value in inputs.items()}
    return model(**inputs, **given(core_of(model), cache=cache), use_cache=True, logits_to_keep=1).logits[0, -1]


@torch.no_grad()
def prefix_states(
    model: nn.Module, processor: Any, groups: Sequence[Sequence[Row]], encoded: Sequence[Any], layers: int
) -> PrefixStates:
    """What the first `layers` of an unwrapped model make of each image's prefix; see ``answer_behind``."""
    return PrefixStates.of(model, _heads(model, processor, [group[0] for group in groups], encoded), layers)


def answer_behind(
    model: nn.Module,
    processor: Any,
    groups: Sequence[Sequence[Row]],
    encoded: Sequence[Any],
    prefixes: PrefixStates,
    max_new_tokens: int,
    batch_size: int = 16,
) -> Iterator[list[tuple[Row, Answer]]]:
    """One prefill per question, whose first layers run on the columns behind the image only.

    The same answers as ``answer_plain`` for methods that choose behind those layers.

    Parameters
    ----------
    groups, encoded, batch_size
        As for ``answer_shared``.
    prefixes : PrefixStates
        Of these images.

    Yields
    ------
    list of (Row, Answer)
        Batch by batch.
    """
    for same in by_length([(i, row) for i, group in enumerate(groups) for row in group]):
        for batch in batches(same, batch_size):
            images, rows = [i for i, _ in batch], [row for _, row in batch]
            with prefixes.stand_in(images, len(rows[0].ids)):
                found = answer_plain(model, processor, rows, [encoded[i] for i in images], max_new_tokens)
            yield list(zip(rows, found, strict=True))


def _heads(model: nn.Module, processor: Any, firsts: Sequence[Row], encoded: Sequence[Any]) -> dict[str, Any]:
    """Model inputs of the equally long prefixes of rows."""
    n = firsts[0].prefix
    tokens = [{k: v[:n] for k, v in row.tokens.items()} for row in firsts]
    head = pad_rows([row.ids[:n] for row in firsts], tokens, pad_id(processor))
    inputs = {name: to_device(value, model) for name, value in head.items()}
    return inputs | encoder_inputs(firsts, encoded, model)


def by_length(rows: Sequence[tuple[int, Row]]) -> list[list[tuple[int, Row]]]:
    """Numbered rows by their length: equally long ones need no padding behind their prefix."""
    found: dict[int, list[tuple[int, Row]]] = defaultdict(list)
    for i, row in rows:
        found[len(row.ids)].append((i, row))
    return [found[length] for length in sorted(found)]


def select_cache(cache: Any, rows: Sequence[int]) -> Any:
    """A KV cache with `rows` of `cache`, in this order and possibly repeated; `cache` stays as it was."""
    # every method of a cache layer replaces its tensors and writes into none, so shallow copies are independent
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    new.batch_select_indices(torch.tensor(rows, device=cache.layers[0].keys.device))
    return new
