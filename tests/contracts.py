"""Runs a setting on a family and a prompt shape, once, for the contract tests to look at."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from methods import Setting
from reference import Generated, baseline, greedy, hidden_per_layer, text_model, tokens_of
from torch import Tensor, nn
from zoo import prompt, tiny

import vtc

TOLERANCE = 1e-4
ENTERED = -1  # among recorded states: the text model itself was called


@dataclass
class Outcome:
    """What the pruned model did on a prompt."""

    report: Any
    generated: Generated
    logits: Tensor  # of the prompt, [B, L, V]
    forward_report: Any
    physical: list[int]  # columns in each cache layer after the prefill
    features: dict[str, Any] = field(default_factory=dict)  # outputs of get_*_features, when the encoder pruned
    vectors: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # merged tokens, by layer


@contextmanager
def recorded_features(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Collect what ``get_image_features`` and ``get_video_features`` of the wrapped model return."""
    core, seen = model.base_model, {}
    wrapped = {n: core.__dict__[n] for n in ("get_image_features", "get_video_features") if n in core.__dict__}

    def spy(name: str, fn: Any) -> Any:
        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            before = dict(seen)
            out = fn(*args, **kwargs)
            seen.clear()  # Qwen3-VL's videos go through get_image_features: only the outer call counts
            seen.update(before, **{name: copy(out)})  # generate() repeats it in place for beams
            return out

        return call

    for name, fn in wrapped.items():
        setattr(core, name, spy(name, fn))
    try:
        yield seen
    finally:
        for name, fn in wrapped.items():
            setattr(core, name, fn)


@contextmanager
def recorded_states(model: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Collect what enters each decoder layer at prefill, `[B, L', D]`; to be used under a wrapped model."""
    seen: dict[int, Any] = {}

    def hook(i: int) -> Any:
        def pre(_: nn.Module, args: tuple) -> None:
            if ENTERED in seen:  # before that a method has the layers read the question alone
                seen.setdefault(i, args[0])

        return pre

    handles = [m.register_forward_pre_hook(hook(i)) for i, m in enumerate(text_model(model).layers)]
    handles.append(text_model(model).register_forward_pre_hook(lambda *_: seen.update({ENTERED: True})))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def merged_vectors(
    setting: Setting, report: Any, states: dict[int, Tensor], valid: Tensor
) -> dict[int, tuple[Tensor, Tensor]]:
    """The vectors of a merging method's tokens as they entered the layer behind each merging step, for ``injected``."""
    if not any(c.merges for c in setting.classes):
        return {}
    batch, width = valid.shape
    out = {}
    for step in report.steps:
        layer = step.layer if step.stage == "decoder" else 0
        gone = hidden_per_layer(report, batch, width, layer + 1)[layer]
        visual = torch.zeros_like(gone)
        for span in report.spans:
            visual[span.sample, span.columns] = True
        values = []
        for b in range(batch):
            there = valid[b].bool() & ~gone[b]
            there[valid[b].nonzero().max()] = True  # asks, also when its token is gone
            present = there.nonzero()[:, 0]
            values.append(states[layer][b, -len(present) :][(visual & ~gone)[b, present]])  # rows are right-aligned
        out[layer] = (visual & ~gone, torch.cat(values))
    return out


@lru_cache(maxsize=256)
def outcome(setting: Setting, family: str, shape: str, impl: str = "sdpa") -> Outcome:
    """Prune `family` with `setting` on its prompt of `shape`: one prefill over all logits, and greedy tokens."""
    model, inputs, plain = tiny(family, impl), prompt(family, shape).inputs, baseline(family, shape, impl)
    valid = inputs["attention_mask"]
    with vtc.compressed(model, setting.pruner, keep=setting.keep, **setting.params):
        with recorded_features(model) as features, recorded_states(model) as states:
            out = model(**inputs, position_ids=plain.positions[..., : valid.shape[1]], use_cache=True)
        first = model.vtc.report
        generated = (
            greedy(model, inputs, tokens_of(shape)) if shape != "right" else Generated(torch.empty(0), torch.empty(0))
        )
        report = model.vtc.report
    encoder = any(step.stage == "vision" for step in first.steps)
    return Outcome(
        report=report,
        generated=generated,
        logits=out.logits,
        forward_report=first,
        physical=[layer.keys.shape[-2] for layer in out.past_key_values.layers],
        features=features if encoder else {},
        vectors=merged_vectors(setting, first, states, valid),
    )


def same_report(a: Any, b: Any) -> bool:
    """Whether two reports tell of the same spans and kept tokens."""
    return (
        len(a.spans) == len(b.spans)
        and len(a.steps) == len(b.steps)
        and all(
            x.sample == y.sample and torch.equal(x.columns, y.columns) for x, y in zip(a.spans, b.spans, strict=True)
        )
        and all(
            (x.stage, x.layer) == (y.stage, y.layer)
            and all(torch.equal(k, m) for k, m in zip(x.kept, y.kept, strict=True))
            for x, y in zip(a.steps, b.steps, strict=True)
        )
    )
