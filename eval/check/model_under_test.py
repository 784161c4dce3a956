"""A small model under one attention implementation, what it does untouched, and what it does pruned."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vtc.api import compressed
from vtc.eval.check.prompts.build_prompts import Prompts
from vtc.models.layout.model_parts import Parts
from vtc.models.stock.call_arguments import cache_of, call_of
from vtc.models.stock.transformers_api import FEATURES, keeps_state
from vtc.models.stock.tripwire import held
from vtc.pruners.base import Pruner

from .going_round import recorded_gates, rounds
from .masked_reference import (
    EMBEDDED,
    Generated,
    Uncheckable,
    greedy,
    greedy_with_positions,
    hidden_per_layer,
    reference,
)
from .shortened_reference import shortened_reference


@dataclass
class Setting:
    """What is asked of vtc: a name for the table, and a pipeline."""

    stage: str
    pipeline: tuple[Pruner, ...]
    parts: dict[str, str] | None = None

    def compressed(self, model: nn.Module) -> Any:
        """``vtc.compressed`` with this setting."""
        return compressed(model, self.pipeline, parts=self.parts)


@dataclass
class Plain:
    """The untouched model on a prompt: greedy tokens and their logits, the prompt's logits, rotary positions.

    Its features are the reference's too, so that another rounding in the tower is not taken for a wrong mask.
    """

    generated: Generated
    logits: Tensor
    positions: Tensor
    features: dict[str, list[Any]]


@dataclass
class Pruned:
    """The pruned model on a prompt."""

    report: Any
    logits: Tensor  # of the prompt, [B, L, V]
    generated: Generated | None
    hidden: Tensor  # [depth, B, L] bool
    columns: dict[int, tuple[int, int | None]]  # by layer with keys: how many after the prefill, and its window
    features: dict[str, list[Any]] = field(default_factory=dict)  # where they are other than the untouched model's
    vectors: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    taken: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # what goes round which layer, and gates
    counted: Tensor | None = None  # by layer how many tokens [depth, B, L] the prompt sees in each

    @property
    def left(self) -> Tensor:
        """`[B, L]` bool: columns that leave the last layer, padding among them; those that went round it do."""
        before = [i for i in range(len(self.hidden)) if i not in self.taken]
        return ~self.hidden[before[-1]] if before else torch.ones_like(self.hidden[0])


class Subject:
    """One small model, its prompts, and its eager twin as the truth.

    Parameters
    ----------
    attention : str
        Name of the implementation.
    parts : Parts
        Of the model under test, which is untouched between calls.
    truth : Parts
        Of its eager twin.
    prompts : Prompts
        Of both.
    tokens : int
        How many tokens are generated on the main prompt.
    """

    def __init__(self, attention: str, parts: Parts, truth: Parts, prompts: Prompts, tokens: int):
        self.attention, self.parts, self.truth, self.prompts, self.tokens = attention, parts, truth, prompts, tokens
        self.model: Any = parts.model
        self.special = prompts.tokens.special
        self.recurrent = keeps_state(truth.lm.config)
        self._plain: dict[str, Plain] = {}
        self._pruned: dict[tuple[str, str], Pruned] = {}

    def length(self, shape: str) -> int:
        """Tokens generated on a prompt of `shape`: few on the others to save time."""
        return self.tokens if shape == "ragged" else min(self.tokens, 4)

    def generate(self, inputs: dict[str, Any], n: int, **kwargs: Any) -> Generated:
        """Greedy tokens."""
        return greedy(self.model, inputs, n, self.special, **kwargs)

    def plain(self, shape: str) -> Plain:
        """The untouched model on its prompt of `shape`; raise Uncheckable where transformers itself fails there."""
        if shape not in self._plain:
            try:
                self._plain[shape] = self._untouched(shape)
            except Uncheckable:
                raise
            except Exception as error:
                raise Uncheckable(
                    f"the untouched model fails on this prompt: {type(error).__name__}: {error}"
                ) from error
        return self._plain[shape]

    def _untouched(self, shape: str) -> Plain:
        inputs = self.prompts[shape].inputs
        width, n = inputs["input_ids"].shape[1], self.length(shape)
        if shape == "right":  # generate() is not meant for right padding: positions as on the left
            left, mask = self.plain("ragged").positions[..., :width], inputs["attention_mask"].bool()
            positions = torch.zeros_like(left)
            positions[..., mask] = left[..., self.prompts["ragged"].inputs["attention_mask"].bool()]
            generated = self.plain("ragged").generated
        else:
            generated, positions = greedy_with_positions(self.parts, inputs, n, self.special)
        with recorded_features(self.parts.core) as features:
            logits = self.model(**inputs, position_ids=positions[..., :width], use_cache=False).logits
        return Plain(generated, logits, positions, features)

    def pruned(self, setting: Setting, shape: str) -> Pruned:
        """The model pruned by `setting` on its prompt of `shape`: one prefill over all logits, and greedy tokens."""
        key = setting.stage, shape
        if key not in self._pruned:
            self._pruned[key] = self._prune(setting, shape)
        return self._pruned[key]

    def _prune(self, setting: Setting, shape: str) -> Pruned:
        plain, inputs = self.plain(shape), self.prompts[shape].inputs
        valid = inputs["attention_mask"]
        batch, width = valid.shape
        with setting.compressed(self.model):
            with (
                recorded_features(self.parts.core) as features,
                recorded_states(self.parts) as states,
                recorded_gates(setting.pipeline) as gates,
            ):
                out = self.model(**inputs, position_ids=plain.positions[..., :width], use_cache=True)
            generated = None if shape == "right" else self.generate(inputs, self.length(shape))
            report = self.model.vtc.report
        hidden = hidden_per_layer(report, batch, width, len(self.parts.layers))
        in_tower = any(step.stage == "vision" for step in report.steps)
        merges = any(p.merges for p in setting.pipeline)
        return Pruned(
            report,
            out.logits,
            generated,
            hidden,
            {
                i: (n, getattr(layer, "sliding_window", None))
                for i, layer in enumerate(cache_of(out).layers)
                if (n := held(cache_of(out), i)) is not None
            },
            features if in_tower else {},
            merged_vectors(report, hidden, states, valid.bool()) if merges else {},
            rounds(gates, [s.layer for s in report.steps if s.loan], hidden, visual_columns(report, batch, width)),
            counted_keys(report, hidden),
        )

    def truth_of(self, pruned: Pruned, shape: str, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits of the reference on the prompt of `shape` and the `tokens` that followed."""
        inputs, plain, answered = self.prompts[shape].inputs, self.plain(shape), self.prompts.kind.answered
        positions, features = plain.positions if positions is None else positions, pruned.features or plain.features
        given = self.truth, inputs, pruned.hidden, positions, tokens, pruned.vectors, features, answered
        return shortened_reference(*given) if self.recurrent else reference(*given, pruned.taken, pruned.counted)


def counted_keys(report: Any, hidden: Tensor) -> Tensor | None:
    """`[depth, B, L]`: as how many tokens the prompt sees each that is left of a span that lost some, 0: as it is.

    None where no method ``calibrates``.
    """
    counted = torch.zeros(hidden.shape)
    steps = [step for step in report.steps if step.sizes is not None]
    for step in steps:
        first = step.layer or 0
        for span, kept, sizes in zip(report.spans, step.kept, step.sizes, strict=True):
            if len(kept) < len(span.columns):
                counted[first:, span.sample, span.columns] = 0
                counted[first:, span.sample, span.columns[kept]] = sizes
    return counted if steps else None


def visual_columns(report: Any, batch: int, width: int) -> Tensor:
    """`[B, width]` bool: the visual tokens of a prefill that no step but a loan dropped."""
    visual = torch.zeros(batch, width, dtype=torch.bool)
    lasting = [step for step in report.steps if not step.loan]
    for i, span in enumerate(report.spans):
        visual[span.sample, span.columns[lasting[-1].kept[i]] if lasting else span.columns] = True
    return visual


@contextmanager
def recorded_features(core: Any) -> Iterator[dict[str, list[Any]]]:
    """Collect what the feature methods of a (wrapped) model return, call by call."""
    seen: dict[str, list[Any]] = {}
    shadowed = {n: core.__dict__.get(n) for n in FEATURES if hasattr(core, n)}

    def spy(name: str, method: Any) -> Any:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            before = dict(seen)
            out = method(*args, **kwargs)
            seen.clear()  # Qwen3-VL's videos go through get_image_features: only the outer call counts
            seen.update(before, **{name: [*before.get(name, ()), out]})
            return out

        return call

    for name in shadowed:
        core.__dict__[name] = spy(name, getattr(core, name))
    try:
        yield seen
    finally:
        for name, method in shadowed.items():
            if method is None:
                del core.__dict__[name]
            else:
                core.__dict__[name] = method


@contextmanager
def recorded_states(parts: Parts) -> Iterator[dict[int, Tensor]]:
    """Collect what enters each decoder layer of a wrapped model at prefill, and as -1 its text model, `[B, L', D]`."""
    seen: dict[int, Tensor] = {}

    def hook(i: int) -> Any:
        def pre(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and EMBEDDED in seen:  # before that a method has the layers read the question alone
                seen.setdefault(i, args[0])

        return pre

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.setdefault(EMBEDDED, call_of(module, args, kwargs).get("embeds"))

    handles = [m.register_forward_pre_hook(hook(i)) for i, m in enumerate(parts.layers)]
    handles.append(parts.lm.register_forward_pre_hook(enter, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def merged_vectors(
    report: Any, hidden: Tensor, states: dict[int, Tensor], valid: Tensor
) -> dict[int, tuple[Tensor, Tensor]]:
    """The vectors of a merging method's tokens as they entered what is behind each step; pruned rows end alike."""
    visual = torch.zeros_like(valid)
    for span in report.spans:
        visual[span.sample, span.columns] = True
    found = {}
    for step in report.steps:
        layer = step.layer if step.stage == "decoder" else EMBEDDED
        stays, values = ~hidden[max(layer, 0)], []
        left = visual & stays
        for b, row in enumerate(valid & stays):
            row[valid[b].nonzero().max()] = True  # asks, also when its token is gone
            present = row.nonzero()[:, 0]
            values.append(states[layer][b, -len(present) :][left[b, present]])
        found[layer] = (left, torch.cat(values))
    return found
