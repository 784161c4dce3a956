"""What pruning must be equal to: the untouched model on the full sequence, dropped tokens hidden by masks.

Nothing of vtc's work is used: the masks are those that transformers makes for eager attention, with the dropped tokens
closed as keys; positions are those that the untouched model uses; the pruned model's tokens are appended, and ONE
forward without a cache gives the logits that each of them must have come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vtc.models.layout.model_parts import Parts
from vtc.models.stock.call_arguments import call_of, takes

from .going_round import Round, going_round

TYPE_INPUTS = ("mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids")
Vectors = Mapping[int, tuple[Tensor, Tensor]]
EMBEDDED = -1  # the "layer" whose vectors are the text model's embeddings


class Uncheckable(Exception):
    """The reference can't be computed for this model."""


class Generated(NamedTuple):
    """Greedy tokens `[B, n]`, the raw logits `[B, n, V]` they were chosen from, the whole sequences, and the cache."""

    tokens: Tensor
    logits: Tensor
    sequences: Tensor
    cache: Any


def greedy(model: Any, inputs: Mapping[str, Any], n: int, special: tuple[int, ...], **kwargs: Any) -> Generated:
    """Exactly `n` greedy tokens with KV cache, placeholders excluded."""
    from vtc.models.stock.call_arguments import cache_of

    settings = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False, "suppress_tokens": list(special)}
    out = model.generate(**inputs, **settings, **kwargs, return_dict_in_generate=True, output_logits=True)
    return Generated(out.sequences[:, -n:], torch.stack(out.logits, 1), out.sequences, cache_of(out))


def greedy_with_positions(
    parts: Parts, inputs: Mapping[str, Any], n: int, special: tuple[int, ...]
) -> tuple[Generated, Tensor]:
    """Greedy tokens of the untouched model, and its rotary positions, `[B, L+n-1]` or `[axes, B, L+n-1]`."""
    seen: list[Tensor] = []
    rotary = getattr(parts.lm, "rotary_emb", None)
    if rotary is None:
        if any(takes(layer, "rotary") for layer in parts.layers):
            raise Uncheckable(f"{type(parts.lm).__name__} has no rotary_emb, so its positions can't be seen")
        rotary = parts.lm  # its layers know no positions, so those that it is given are as good as any
    sections = getattr(rotary, "mrope_section", None)
    axes = len(sections) if isinstance(sections, (list, tuple)) else 3  # Hunyuan has four

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = call_of(module, args, kwargs).get("positions")
        seen.append(found[-axes:] if found.dim() == 3 else found)

    hook = rotary.register_forward_pre_hook(look, with_kwargs=True)
    try:
        out = greedy(parts.model, inputs, n, special)
    finally:
        hook.remove()
    batch, calls = inputs["input_ids"].shape[0], len(seen) // n  # Gemma3 calls it for each kind of layer
    return out, torch.cat([p.expand(*p.shape[:-2], batch, -1) for p in seen[::calls]], -1)


def hidden_per_layer(report: Any, batch: int, width: int, depth: int) -> Tensor:
    """`[depth, B, width]` bool: True where the report says that the layer no longer has this token."""
    hidden = torch.zeros(depth, batch, width, dtype=torch.bool)
    for step in report.steps:
        first = step.layer if step.stage == "decoder" else 0
        end = first + 1 if step.loan else depth
        for span, kept in zip(report.spans, step.kept, strict=True):
            gone = torch.ones(len(span.columns), dtype=torch.bool)
            gone[kept.cpu()] = False
            hidden[first:end, span.sample, span.columns[gone]] = True
    return hidden


@contextmanager
def layer_inputs(parts: Parts, change: Any) -> Iterator[None]:
    """Let ``change(layer, call)`` change what each decoder layer is called with."""

    def hook(i: int) -> Any:
        def pre(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = call_of(module, args, kwargs)
            change(i, call)
            return call.args, call.kwargs

        return pre

    handles = [m.register_forward_pre_hook(hook(i), with_kwargs=True) for i, m in enumerate(parts.layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def windows_behind_prompts(config: Any) -> list[int | None]:
    """Per layer of a text model the window that it sees of what it generates, where it keeps the prompt whole."""
    kinds = getattr(config, "layer_types", None) or [""] * config.num_hidden_layers
    return [config.sliding_window if kind == "reference_sliding_attention" else None for kind in kinds]


def more_seen(call: Any, counted: Tensor, prompt: int) -> Tensor:
    """`[B, T, T]`: what a method that ``calibrates`` adds to the prompt's logits for keys `counted` `[B, T]` times."""
    more = counted.log()[:, None]
    if call.get("rotary") is not None:  # else a layer that knows no positions
        cosines, sines = (x.float() for x in call.get("rotary"))
        length = (cosines[..., :1, :1] ** 2 + sines[..., :1, :1] ** 2) * cosines.shape[-1]  # of scaled embeddings too
        more = more + (2 - (cosines @ cosines.mT + sines @ sines.mT) / length).log()
    asks = torch.arange(counted.shape[1]) < prompt
    return torch.where(asks[:, None] & (counted > 0)[:, None], more, 0)


def hiding(parts: Parts, hidden: Tensor, vectors: Vectors, prompt: int, counted: Tensor | None = None) -> Any:
    """Close ``hidden[layer]`` `[B, T]` as keys in the eager masks of the untouched model.

    Without a cache all of a sequence is prompt to a model that keeps the prompt and has a window on what follows: that
    window is closed here, behind `prompt` columns.

    Every column may see itself, so that hidden ones stay finite. ``vectors[i]`` = (where `[B, T]` bool, values
    `[n, D]`): merged tokens, put into the states before layer `i`. ``counted[i]`` `[B, T]`: the keys that its prompt
    sees more of, by the number of tokens that they stand for; 0 for the others.
    """

    windows = windows_behind_prompts(parts.lm.config)

    def change(i: int, call: Any) -> None:
        mask = call.get("mask")
        if not isinstance(mask, Tensor) or mask.dim() != 4:
            got = "none" if mask is None else f"{type(mask).__name__}"
            raise Uncheckable(f"decoder layer {i} has no attention mask in which tokens could be hidden (it got {got})")
        least = torch.finfo(mask.dtype if mask.is_floating_point() else torch.float32).min
        open_ = mask == 0 if mask.is_floating_point() else mask.bool()
        own = torch.eye(mask.shape[-2], mask.shape[-1], dtype=torch.bool)
        if (window := windows[i]) is not None:
            query, key = torch.arange(open_.shape[-2])[:, None], torch.arange(open_.shape[-1])
            open_ = open_ & ((key < prompt) | (key > query - window))
        open_ = (open_ & ~hidden[i][:, None, None]) | own
        more = torch.zeros(()) if counted is None else more_seen(call, counted[i], prompt)[:, None]
        call.put("mask", torch.where(open_, more, least))
        if i in vectors:
            where, values = vectors[i]
            states = call.get("hidden").clone()
            states[where] = values
            call.put("hidden", states)

    return layer_inputs(parts, change)


@contextmanager
def embedded(parts: Parts, where: Tensor, values: Tensor) -> Iterator[None]:
    """Let the text model be given merged vectors, so that all it makes of its embeddings is made of these."""

    def pre(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = call_of(module, args, kwargs)
        embeds = call.get("embeds").clone()
        embeds[where] = values
        call.put("embeds", embeds)
        return call.args, call.kwargs

    handle = parts.lm.register_forward_pre_hook(pre, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _next(outputs: Iterator[Any], *_: Any, **__: Any) -> Any:
    return next(outputs)


@contextmanager
def features_given(core: Any, outputs: Mapping[str, list[Any]]) -> Iterator[None]:
    """Let ``get_image_features`` / ``get_video_features`` of the untouched model return recorded `outputs`, in turn."""
    for name, out in outputs.items():
        core.__dict__[name] = partial(_next, iter(out))
    try:
        yield
    finally:
        for name in outputs:
            del core.__dict__[name]


def reference(
    parts: Parts,
    inputs: Mapping[str, Any],
    hidden: Tensor,
    positions: Tensor,
    tokens: Tensor,
    vectors: Vectors | None = None,
    features: Mapping[str, list[Any]] | None = None,
    answered: int = 0,
    taken: Round | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """Logits `[B, L + n - 1, V]` over the prompt and the first `n - 1` of the `tokens` `[B, n]` that followed.

    `answered` is the token type of those. `taken`: what goes round layers. `counted`: `[depth, B, L]`, the keys that
    the prompt sees more of, see ``hiding``.

    ``[:, :L]`` are the prefill's, ``[:, L - 1:]`` those that the `n` tokens must have been chosen from.
    """
    extra = tokens.shape[1] - 1
    moved = {i: (longer(where, extra), values) for i, (where, values) in (vectors or {}).items()}
    with ExitStack() as stack:
        more = None if counted is None else longer(counted, extra)
        stack.enter_context(hiding(parts, longer(hidden, extra), moved, inputs["input_ids"].shape[1], more))
        stack.enter_context(features_given(parts.core, features or {}))
        further = {i: (longer(x, extra), longer(gate, extra, 1)) for i, (x, gate) in (taken or {}).items()}
        stack.enter_context(going_round(parts, further))
        if EMBEDDED in moved:
            stack.enter_context(embedded(parts, *moved[EMBEDDED]))
        return parts.model(**continued(inputs, tokens, positions, answered), use_cache=False).logits


def longer(x: Tensor, extra: int, value: int = 0) -> Tensor:
    """`[..., T]` with `extra` times `value` behind it."""
    return torch.cat([x, x.new_full((*x.shape[:-1], extra), value)], -1)


def continued(inputs: Mapping[str, Any], tokens: Tensor, positions: Tensor, answered: int = 0) -> dict[str, Any]:
    """Inputs of one forward over a prompt and all but the last of the `tokens` `[B, n]`, of type `answered`, then."""
    given, extra = dict(inputs), tokens.shape[1] - 1
    for name in TYPE_INPUTS:
        if name in given:
            given[name] = longer(given[name], extra, answered)
    given["input_ids"] = torch.cat([given["input_ids"], tokens[:, :extra]], 1)
    given["attention_mask"] = longer(given["attention_mask"], extra, 1)
    return {**given, "position_ids": positions[..., : given["input_ids"].shape[1]]}
