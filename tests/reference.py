"""What pruning must be equal to: the untouched model on the full sequence, no cache, dropped tokens hidden by masks.

Tokens that go round one layer are hidden from it too, and behind it they are as they were, times their gates; what the
layer's MLP adds to the others is gated likewise.

Nothing of vtc is used here. Which tokens are hidden from which layers on is read from the public report (``spans`` and
``steps``); positions are those that the untouched model itself uses for this prompt; the greedy tokens of the pruned
model are appended, and ONE causal forward over everything gives the logits that each of them must have come from. (If
the reference's arg-max agrees at every step, greedy decoding of the reference gives the same tokens, by induction.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from zoo import SPECIAL, prompt, tiny

LONG, SHORT = 20, 8
MASK_INPUTS = ("mm_token_type_ids", "token_type_ids")


def tokens_of(shape: str) -> int:
    """How many tokens are generated on a prompt of `shape`: 20 on one shape, fewer on the others to save time."""
    return LONG if shape == "ragged" else SHORT


def text_model(model: nn.Module) -> nn.Module:
    """The language model without its head."""
    core = model.base_model
    return core.language_model if hasattr(core, "language_model") else core.text_model


@dataclass
class Generated:
    """Greedy tokens `[B, n]` and the raw logits they were chosen from `[B, n, V]`."""

    tokens: Tensor
    logits: Tensor


def greedy(model: nn.Module, inputs: dict[str, Any], n: int, **kwargs: Any) -> Generated:
    """Exactly `n` greedy tokens with KV cache, placeholders excluded."""
    settings = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False, "suppress_tokens": SPECIAL, **kwargs}
    out = model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    return Generated(out.sequences[:, -n:], torch.stack(out.logits, 1))


def allowed(logits: Tensor) -> Tensor:
    """Logits with the placeholders excluded, as ``greedy`` does."""
    return logits.index_fill(-1, torch.tensor(SPECIAL), float("-inf"))


@dataclass
class Baseline:
    """The untouched model on a prompt: its greedy tokens and logits, the prompt's logits and the rope positions."""

    generated: Generated
    logits: Tensor
    positions: Tensor


def record_positions(model: nn.Module, inputs: dict[str, Any], n: int) -> tuple[Generated, Tensor]:
    """Greedy tokens of the untouched model, and its rotary positions, `[B, L+n-1]` or `[3, B, L+n-1]`."""
    seen: list[Tensor] = []

    def look(_: nn.Module, args: tuple, kwargs: dict) -> None:
        position_ids = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        seen.append(position_ids[-3:] if position_ids.dim() == 3 else position_ids)

    turning = next(
        iter(getattr(text_model(model), "rotary_embs", ())), text_model(model).rotary_emb
    )  # Granite SWA: many
    hook = turning.register_forward_pre_hook(look, with_kwargs=True)
    try:
        out = greedy(model, inputs, n)
    finally:
        hook.remove()
    steps = len(seen) // n  # Gemma3 has one rotary embedding call for each kind of layer
    batch = inputs["input_ids"].shape[0]
    positions = torch.cat([p.expand(*p.shape[:-2], batch, -1) for p in seen[::steps]], -1)
    return out, positions


@lru_cache(maxsize=512)
def baseline(family: str, shape: str, impl: str = "sdpa") -> Baseline:
    """The untouched model of `family` on its prompt of `shape`."""
    model, inputs = tiny(family, impl), prompt(family, shape).inputs
    width = inputs["input_ids"].shape[1]
    if shape == "right":  # generate() is not meant for right padding: plain positions
        positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        if family.startswith("qwen"):
            given = {k: v for k, v in inputs.items() if not k.startswith("pixel")}
            positions, _ = model.model.get_rope_index(**given)
        generated = Generated(torch.empty(0), torch.empty(0))
    else:
        generated, positions = record_positions(model, inputs, tokens_of(shape))
    logits = model(**inputs, position_ids=positions[..., :width], use_cache=False).logits
    return Baseline(generated, logits, positions)


def hidden_per_layer(report: Any, batch: int, width: int, depth: int) -> Tensor:
    """`[depth, B, width]` bool: True where the report says that the layer no longer has this token."""
    hidden = torch.zeros(depth, batch, width, dtype=torch.bool)
    for step in report.steps:
        first = step.layer if step.stage == "decoder" else 0
        end = first + 1 if getattr(step, "loan", False) else depth
        for span, kept in zip(report.spans, step.kept, strict=True):
            gone = torch.ones(len(span.columns), dtype=torch.bool)
            gone[kept.cpu()] = False
            hidden[first:end, span.sample, span.columns[gone]] = True
    return hidden


def dropped(report: Any, batch: int, width: int, depth: int) -> Tensor:
    """`[B, L]` bool: the columns that never come back."""
    stays = SimpleNamespace(spans=report.spans, steps=[s for s in report.steps if not getattr(s, "loan", False)])
    return hidden_per_layer(stays, batch, width, depth)[-1]


def kept_at_end(report: Any, attention_mask: Tensor, depth: int) -> Tensor:
    """`[B, L]` bool: the columns that leave the last layer."""
    return attention_mask.bool() & ~dropped(report, *attention_mask.shape, depth)


def loans_of(report: Any) -> list[int]:
    """The layers that some tokens go round."""
    return [step.layer for step in report.steps if getattr(step, "loan", False)]


def seen_more(report: Any, batch: int, width: int, prompts: list[tuple[int, int]], layer: int, rotary: Any) -> Any:
    """`[B, 1, T, T]`: what a method that calibrates adds to a layer's logits, None where it adds nothing.

    ``log(s (2 - D))`` for queries of a prompt, columns from one number up to another, and what is left in the same of a
    span that lost some; s is how many tokens that stands for, D the mean cosine of the differences of their angles.
    """
    sizes = torch.zeros(batch, width)
    steps = [step for step in report.steps if step.sizes is not None and (step.layer or 0) <= layer]
    for step in steps:
        for span, kept, size in zip(report.spans, step.kept, step.sizes, strict=True):
            if len(kept) < len(span.columns):
                sizes[span.sample, span.columns] = 0
                sizes[span.sample, span.columns[kept]] = size
    if not steps:
        return None
    angle = torch.atan2(rotary[1], rotary[0])
    closeness = (angle[:, :, None] - angle[:, None]).cos().mean(-1)
    columns = torch.arange(width)
    turns = [(begin <= columns) & (columns < end) for begin, end in prompts]
    together = torch.stack([turn[:, None] & turn for turn in turns]).any(0)
    more = sizes.to(closeness).log()[:, None] + (2 - closeness).log()
    return torch.where(together & (sizes > 0)[:, None], more, 0)[:, None]


@contextmanager
def masked(
    model: nn.Module, hidden: Tensor, valid: Tensor, more: Callable[[int, Any], Tensor | None] = lambda *_: None
) -> Iterator[None]:
    """Hide ``hidden[layer]`` `[B, T]` (and padding) from the layers of the untouched model.

    ``more(layer, rotary embeddings)`` is what is added to the logits of what is seen, if anything.

    A mask that transformers itself made is kept as the base (Gemma3's blocks and windows); where it made none, the
    causal one with the layer's window is written out. Every row may see itself, so that hidden rows stay finite.
    """
    lm = text_model(model)
    width = valid.shape[1]
    query, key = torch.arange(width)[:, None], torch.arange(width)[None]
    eager = lm.config._attn_implementation == "eager"

    def explicit(given: Tensor | None, window: int | None, layer: int, dtype: torch.dtype, rotary: Any) -> Tensor:
        if given is not None and given.dim() == 4:
            base = given if given.dtype == torch.bool else given == 0
        else:
            base = (key <= query) & (key > query - window if window else torch.ones_like(key, dtype=torch.bool))
        mask = base & valid[:, None, None] & ~hidden[layer][:, None, None]
        mask = mask | torch.eye(width, dtype=torch.bool)
        added = more(layer, rotary)
        if added is None and not eager:
            return mask
        added = torch.zeros((), dtype=dtype) if added is None else added.to(dtype)
        return torch.where(mask, added, torch.finfo(dtype).min)

    def hook(layer: int) -> Any:
        attention = getattr(lm.layers[layer], "self_attn", None)  # GPT-NeoX calls it otherwise
        window = getattr(attention, "sliding_window", getattr(lm.config, "sliding_window", None))

        def pre(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            given, rotary = kwargs["attention_mask"], kwargs.get("position_embeddings")
            return args, {**kwargs, "attention_mask": explicit(given, window, layer, args[0].dtype, rotary)}

        return pre

    handles = [m.register_forward_pre_hook(hook(i), with_kwargs=True) for i, m in enumerate(lm.layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def injected(model: nn.Module, vectors: dict[int, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Put ``vectors[i] = (where [B, T] bool, values [n, D])``, merged tokens, into the states before layer `i`."""

    def hook(where: Tensor, values: Tensor) -> Any:
        def pre(_: nn.Module, args: tuple) -> tuple:
            states = args[0].clone()
            states[where] = values
            return (states, *args[1:])

        return pre

    layers = text_model(model).layers
    handles = [layers[i].register_forward_pre_hook(hook(*v)) for i, v in vectors.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# behind its MLP, a layer may have a norm of what that adds
BRANCH_ENDS = ("post_feedforward_layernorm", "mlp")
Routers = Callable[[int, Tensor], Tensor]  # gates `[B, T]` of the states `[B, T, D]` that enter a layer


@contextmanager
def going_round(
    model: nn.Module, hidden: Tensor, visual: Tensor, layers: list[int], routers: Routers | None
) -> Iterator[dict[int, Tensor]]:
    """Let tokens go round `layers`: those that are ``hidden[layer]`` `[B, T]`; gates are of what is `visual` `[B, T]`.

    Gives the gates by layer, once the model has run.
    """
    gates: dict[int, Tensor] = {}

    def hooks(i: int) -> list[Any]:
        layer = text_model(model).layers[i]
        entered: list[Tensor] = []

        def pre(_: nn.Module, args: tuple) -> None:
            entered[:] = [args[0]]
            ones = torch.ones_like(args[0][..., 0])
            gates[i] = ones if routers is None else torch.where(visual, routers(i, args[0]), ones)

        def post(_: nn.Module, __: tuple, out: Any) -> Any:
            states = out[0] if isinstance(out, tuple) else out
            states = torch.where(hidden[i][..., None], entered[0] * gates[i][..., None], states)
            return (states, *out[1:]) if isinstance(out, tuple) else states

        def scale(_: nn.Module, __: tuple, added: Tensor) -> Tensor:
            return added * gates[i][..., None]

        end = next(getattr(layer, name) for name in BRANCH_ENDS if hasattr(layer, name))
        return [
            layer.register_forward_pre_hook(pre),
            layer.register_forward_hook(post),
            end.register_forward_hook(scale),
        ]

    handles = [handle for i in layers for handle in hooks(i)]
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


def check_choice(report: Any, gates: dict[int, Tensor], ratios: dict[int, float]) -> None:
    """The report's tokens are those of the largest gates of each sample, as many as float32 makes of the ratio."""
    for step in report.steps:
        if step.layer not in gates:
            continue
        samples = {span.sample for span in report.spans}
        for sample in samples:
            own = [i for i, span in enumerate(report.spans) if span.sample == sample]
            columns = torch.cat([report.spans[i].columns for i in own])
            kept = torch.cat([report.spans[i].columns[step.kept[i]] for i in own])
            count = int(torch.tensor(float(len(columns))) * torch.tensor(ratios[step.layer]))
            assert len(kept) == count
            gate = gates[step.layer][sample]
            rest = columns[~torch.isin(columns, kept)]
            if count and len(rest):
                assert gate[kept].min() >= gate[rest].max() - 1e-5, "the largest gates go through"


@contextmanager
def features_given(model: nn.Module, outputs: dict[str, Any]) -> Iterator[None]:
    """Let ``get_image_features`` / ``get_video_features`` of the untouched model return recorded `outputs`."""
    core = model.base_model
    for name, out in outputs.items():
        setattr(core, name, lambda *_, _out=out, **__: _out)
    try:
        yield
    finally:
        for name in outputs:
            delattr(core, name)


def reference(
    model: nn.Module,
    inputs: dict[str, Any],
    report: Any,
    positions: Tensor,
    tokens: Tensor,
    vectors: dict[int, tuple[Tensor, Tensor]] | None = None,
    routers: Routers | None = None,
    seen: dict[int, Tensor] | None = None,
    prompts: list[tuple[int, int]] | None = None,
) -> Tensor:
    """Logits `[B, L + n - 1, V]` over the prompt and the first `n - 1` of the `tokens` `[B, n]` that followed.

    Where tokens go round layers, `routers` gate them, else 1; `seen` takes the gates. `prompts` are the columns of the
    prefills, from and up to, which is all of the prompt by itself.

    ``[:, :L]`` are the prefill logits, ``[:, L - 1:]`` those that the `n` tokens must have been chosen from.
    """
    inputs = dict(inputs)
    ids, valid = inputs.pop("input_ids"), inputs.pop("attention_mask")
    batch, width = ids.shape
    extra = tokens.shape[1] - 1
    lm = text_model(model)
    hidden = hidden_per_layer(report, batch, width, len(lm.layers))
    hidden = torch.cat([hidden, hidden.new_zeros(len(hidden), batch, extra)], -1)
    valid = torch.cat([valid, valid.new_ones(batch, extra)], 1)
    for name in MASK_INPUTS:
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], inputs[name].new_zeros(batch, extra)], 1)
    vectors = {
        i: (torch.cat([where, where.new_zeros(batch, extra)], 1), values)
        for i, (where, values) in (vectors or {}).items()
    }
    visual = torch.zeros(batch, width + extra, dtype=torch.bool)
    for span in report.spans:
        visual[span.sample, span.columns] = True
    # what went before stays a query at most, which is no candidate
    visual &= ~dropped(report, batch, width + extra, len(lm.layers))
    round_ = going_round(model, hidden & visual, visual, loans_of(report), routers)
    more = partial(seen_more, report, batch, width + extra, prompts or [(0, width)])
    with masked(model, hidden, valid.bool(), more), injected(model, vectors), round_ as gates:
        out = model(
            input_ids=torch.cat([ids, tokens[:, :extra]], 1),
            attention_mask=valid,
            position_ids=positions[..., : width + extra],
            use_cache=False,
            **inputs,
        )
    if seen is not None:
        seen.update(gates)
    return out.logits
