"""A draw set up: the untouched model, the wrapped one, the inputs, and the comparison of logits with the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from contracts import recorded_features, recorded_states
from methods import Setting
from reference import Generated, greedy, text_model
from torch import Tensor, nn
from zoo import FAMILIES, Prompt, free_prompt, tiny
from zoo.models import DEPTH
from zoo.prompts import with_types

import vtc

from .draws import Draw
from .oracle import Seen, asks, cast, compacted, logits_of, merged, rows_of, who_answers

# differences below these need no second look: rounding of six tiny layers, whose norms are float32 always
CLOSE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
ROUNDING = 4  # times what the reference itself loses in this dtype


class Disagreement(Exception):
    """The pruned model and the masked reference differ, or a promise is broken."""


class Skip(Exception):
    """The draw asks for what has no reference."""


def positions_of(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Rope positions of a prompt by the model's own rule, `[B, L]` or `[3, B, L]`."""
    if hasattr(model.base_model, "get_rope_index"):
        given = {k: v for k, v in inputs.items() if not k.startswith("pixel")}
        return model.base_model.get_rope_index(**given)[0]
    return (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)


@contextmanager
def rope_positions(model: nn.Module, batch: int) -> Iterator[list[Tensor]]:
    """The positions of every forward, `[B, L]` or `[3, B, L]`."""
    seen: list[Tensor] = []
    last: list[Any] = []

    def look(_: nn.Module, args: tuple, kwargs: dict) -> None:
        ids = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        if last and last[0] is ids:  # Gemma3 asks once for each kind of layer
            return
        last[:] = [ids]
        ids = ids[-3:] if ids.dim() == 3 else ids
        seen.append(ids.expand(*ids.shape[:-2], batch, -1))

    handle = text_model(model).rotary_emb.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@lru_cache(maxsize=64)
def model_of(_: str, family: str, impl: str, dtype: torch.dtype) -> nn.Module:
    """One model for the stock side and one to wrap, unwrap and wrap again; ``cache_clear`` when one may be broken."""
    return tiny(family, impl).to(dtype)


class Case:
    """What the ways to run share."""

    def __init__(self, draw: Draw):
        self.draw, self.dtype = draw, getattr(torch, draw.dtype)
        self.generator = torch.Generator().manual_seed(draw.seed)
        self.family = FAMILIES[draw.family]
        self.prompt: Prompt = free_prompt(self.family, draw.rows, self.generator, draw.side, draw.padding)
        self.inputs: dict[str, Any] = cast(self.prompt.inputs, self.dtype)
        self.valid = self.inputs["attention_mask"].bool()
        impl = "sdpa" if draw.attention == "flex_attention" else draw.attention
        self.stock = model_of("stock", draw.family, impl, self.dtype)
        self.model = model_of("wrapped", draw.family, draw.attention, self.dtype)
        self.worst = 0.0
        self.unwrapped: Callable[[], Any] | None = None  # what the wrapped model is about to do, by the stock one

    @property
    def width(self) -> int:
        """Columns of the prompt."""
        return self.valid.shape[1]

    def with_types(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """`inputs` with the token types that the family wants."""
        return with_types(self.family, inputs)

    def compress(self) -> None:
        """Wrap the model; its errors are refusals."""
        pipeline = [vtc.pruner_class(name)(**params) for name, params in self.draw.methods]
        vtc.compress(self.model, pipeline, positions=self.draw.positions)

    @property
    def merges(self) -> bool:
        """Whether any method makes new vectors."""
        return any(p.merges for p in self.model.vtc.pipeline)

    @contextmanager
    def watched(self) -> Iterator[Callable[[], Seen]]:
        """While running the wrapped model: a call gives what was seen of the forward before, and forgets it."""
        with recorded_features(self.model) as features, recorded_states(self.model) as states:

            def look() -> Seen:
                # a prompt of one token has no report
                seen = Seen(self.model.vtc.report or SimpleNamespace(spans=[], steps=[]), dict(states))
                self.promised(seen.report)
                if seen.in_the_tower:
                    seen.features = dict(features)
                states.clear()
                return seen

            yield look

    def promised(self, report: Any) -> None:
        """The kept ids of a report are in order, of those that were left, and as many as asked for."""
        left = [set(range(len(span.columns))) for span in report.spans]
        for step in report.steps:
            for i, kept in enumerate(step.kept):
                if not torch.equal(kept, kept.unique()) or not set(kept.tolist()) <= left[i]:
                    raise Disagreement(f"span {i} keeps {kept.tolist()} of {sorted(left[i])}")
                if step.loan:
                    continue
                left[i] = set(kept.tolist())
        pipeline = self.model.vtc.pipeline
        if (
            not report.steps
            or report.steps[-1].loan
            or len(pipeline) > 1
            or pipeline[0].adaptive_count
            or pipeline[0].joins_crops
        ):
            return
        name, params = self.draw.methods[0]
        setting = Setting(name, None, params)
        for span, kept in zip(report.spans, left, strict=True):
            if len(kept) != setting.kept(len(span.columns)):
                raise Disagreement(f"{len(kept)} of {len(span.columns)} kept, not {setting.kept(len(span.columns))}")

    def truth(
        self,
        stock: nn.Module,
        inputs: dict[str, Any],
        seen: Seen,
        positions: Tensor,
        tokens: Tensor | None = None,
        rows: list[int] | None = None,
    ) -> Tensor:
        """Logits `[R, L + n - 1, V]` of the reference; `rows` of `seen` are those of `inputs`, in order."""
        valid = inputs["attention_mask"].bool()
        batch, width = valid.shape
        rows = list(range(batch)) if rows is None else rows
        report = rows_of(seen.report, rows)
        vectors = {}
        if self.merges:
            whole = rows_of(seen.report, range(max(rows) + 1))
            wide = torch.zeros(max(rows) + 1, width, dtype=torch.bool)
            wide[rows] = valid
            vectors = merged(Seen(whole, seen.states), wide, asks(whole, wide, self.draw.positions, self.width), rows)
        if self.draw.positions == "compact":
            early, shift = compacted(positions[:, :width], report, valid, torch.zeros(batch, dtype=torch.long))
            positions = torch.cat([early, positions[:, width:] - shift[:, None]], 1)
        tokens = torch.zeros(batch, 1, dtype=torch.long) if tokens is None else tokens
        # a prompt without a cache has what was generated behind it
        return logits_of(stock, inputs, report, positions, tokens, vectors, seen.features, [(0, self.width)])

    def answers(self, truth: Tensor, seen: Seen, valid: Tensor, rows: list[int] | None = None) -> Tensor:
        """`[R, n, V]`: the reference's logits that the next tokens come from."""
        report = rows_of(seen.report, list(range(len(valid))) if rows is None else rows)
        answer = who_answers(report, valid, self.draw.positions, DEPTH).answer
        if (answer < 0).any():
            raise Disagreement("a row lost all its tokens, and its next token comes from nowhere")
        first = truth[torch.arange(len(answer)), answer]
        return torch.cat([first[:, None], truth[:, valid.shape[1] :]], 1)

    def same(self, found: Tensor, truth: Callable[[nn.Module], Tensor], where: str) -> None:
        """Hold `found` against the reference, in the draw's dtype and, where they differ, in float64 too."""
        expected = truth(self.stock)
        close = CLOSE[self.dtype]
        if not torch.isfinite(found).all():
            if torch.isfinite(expected).all():
                raise Disagreement(f"{where}: not finite")
            return
        off = self._off(found, expected)
        if off >= close and self.dtype != torch.float64:
            exact = truth(deepcopy(self.stock).double())
            off, close = self._off(found, exact), close + ROUNDING * self._off(expected, exact)
        self.worst = max(self.worst, off)
        if not off < close:
            raise Disagreement(f"{where}: off by {off:.2g}, allowed is {close:.2g}")

    @staticmethod
    def _off(a: Tensor, b: Tensor) -> float:
        return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0

    def generate(self, model: nn.Module, n: int, **kwargs: Any) -> Generated:
        """Greedy tokens of `model` on the prompt."""
        return greedy(model, self.inputs, n, **kwargs)
