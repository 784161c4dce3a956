"""The masked reference for any draw: what ``reference.py`` says, for rows that end in a picture, merges and dtypes.

Of vtc only the public report is read, and of merging methods the vectors that they made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from reference import features_given, hidden_per_layer, kept_at_end, reference, text_model
from torch import Tensor, nn


@dataclass
class Seen:
    """What a pruned forward showed: its report, the states that entered each layer and the encoder's features."""

    report: Any
    states: dict[int, Tensor] = field(default_factory=dict)
    features: dict[str, Any] = field(default_factory=dict)

    @property
    def in_the_tower(self) -> bool:
        """Whether the encoder pruned."""
        return any(step.stage == "vision" for step in self.report.steps)


def parts_of(step: Any) -> dict[str, Any]:
    """A step but for what it keeps."""
    return {"stage": step.stage, "layer": step.layer, "loan": step.loan}


def chosen_sizes(step: Any, chosen: Sequence[int]) -> list[Tensor] | None:
    """Of a step the sizes of the spans `chosen`."""
    return None if step.sizes is None else [step.sizes[i] for i in chosen]


def rows_of(report: Any, rows: Sequence[int]) -> SimpleNamespace:
    """The part of a report that tells of `rows`, which become rows 0, 1, ..."""
    place = {row: i for i, row in enumerate(rows)}
    chosen = [i for i, span in enumerate(report.spans) if span.sample in place]
    spans = [SimpleNamespace(sample=place[report.spans[i].sample], columns=report.spans[i].columns) for i in chosen]
    steps = [
        SimpleNamespace(**parts_of(s), kept=[s.kept[i] for i in chosen], sizes=chosen_sizes(s, chosen))
        for s in report.steps
    ]
    return SimpleNamespace(spans=spans, steps=steps)


def joined(first: Any, second: Any, offset: int) -> SimpleNamespace:
    """The reports of two turns as one over the whole dialogue; the second begins at column `offset`."""
    spans = [SimpleNamespace(sample=s.sample, columns=s.columns + offset) for s in second.spans]
    whole = [[torch.arange(len(s.columns)) for s in report.spans] for report in (first, second)]
    steps = []
    for report, before, behind in ((first, [], whole[1]), (second, whole[0], [])):
        for step in report.steps:
            kept = [*before, *step.kept, *behind]
            sizes = None if step.sizes is None else [*map(torch.ones_like, before), *step.sizes, *behind]
            steps.append(SimpleNamespace(**parts_of(step), kept=kept, sizes=sizes))
    return SimpleNamespace(spans=[*first.spans, *spans], steps=steps)


def visual_columns(report: Any, batch: int, width: int) -> Tensor:
    """`[B, T]` bool: the columns of all spans."""
    visual = torch.zeros(batch, width, dtype=torch.bool)
    for span in report.spans:
        visual[span.sample, span.columns] = True
    return visual


def last_columns(valid: Tensor) -> Tensor:
    """`[B]`: the last column of each row that is no padding."""
    return torch.where(valid, torch.arange(valid.shape[1]), -1).amax(1)


def asks(report: Any, valid: Tensor, positions: str, end: int) -> Tensor:
    """`[B]`: the last column of a prompt of `end` columns where it is a visual one that stays as a query; else -1."""
    last = last_columns(valid[:, :end])
    ends = visual_columns(report, *valid.shape).gather(1, last.clamp(min=0)[:, None])[:, 0]
    asking = positions == "keep" and not any(step.stage == "vision" for step in report.steps)
    return torch.where(ends & asking, last, -1)


@dataclass
class Truth:
    """Who answers for each column, and who has an answer at all.

    Attributes
    ----------
    kept : Tensor
        `[B, L]` bool: columns that reach the last layer, those among them that only ask.
    answer : Tensor
        `[B]`: the column that the next token comes from; -1: the row is empty.
    """

    kept: Tensor
    answer: Tensor


def who_answers(report: Any, valid: Tensor, positions: str, depth: int) -> Truth:
    """From the report of a forward over `valid` `[B, L]`."""
    kept = kept_at_end(report, valid, depth)
    asking = asks(report, valid, positions, valid.shape[1])
    for row in (asking >= 0).nonzero()[:, 0].tolist():
        kept[row, asking[row]] = True
    return Truth(kept, last_columns(kept))


def compacted(positions: Tensor, report: Any, valid: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of one forward renumbered without gaps, as if the dropped tokens had never been there.

    Parameters
    ----------
    positions : Tensor
        `[B, L]` original ones.
    report : namespace
        Of this forward: what goes before the language model closes its gap, what goes later leaves one.
    valid : Tensor
        `[B, L]` bool.
    shift : Tensor
        `[B]`: how much the forwards before have gained.

    Returns
    -------
    tuple of Tensor
        The positions `[B, L]`, and the new shift `[B]`.
    """
    early = SimpleNamespace(spans=report.spans, steps=[s for s in report.steps if s.stage != "decoder"])
    gone = hidden_per_layer(early, *valid.shape, 1)[0] & valid
    return positions - shift[:, None] - gone.long().cumsum(1), shift + gone.sum(1)


def merged(seen: Seen, valid: Tensor, asking: Tensor, rows: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
    """For ``reference.injected``: the visual vectors that entered the layer behind each step, of `rows`."""
    batch, width = valid.shape
    report, out = seen.report, {}
    visual = visual_columns(report, batch, width)
    for step in report.steps:
        if step.loan:
            continue
        layer = step.layer if step.stage == "decoder" else 0
        gone = hidden_per_layer(report, batch, width, layer + 1)[layer]
        states, values, places = seen.states[layer], [], []
        for b in rows:
            present = valid[b] & ~gone[b]
            if asking[b] >= 0:
                present[asking[b]] = True
            columns = present.nonzero()[:, 0]
            if not gone.any():
                vectors = states[b, columns]
            else:  # rows are right-aligned, but one by itself: it keeps its padding and may have candidates behind it
                begin = states.shape[1] - len(columns)
                if len(states) == 1:
                    stays = int(valid[b].long().argmax())  # asking moves all padding to the left
                    begin = stays if asking[b] < 0 else int((~valid[b]).sum() + ~gone[b, asking[b]])
                vectors = states[b, begin : begin + len(columns)]
            values.append(vectors[visual[b, columns] & ~gone[b, columns]])
            places.append(visual[b] & ~gone[b])
        out[layer] = (torch.stack(places), torch.cat(values))
    return out


def cast(x: Any, dtype: torch.dtype) -> Any:
    """`x`, and whatever is inside it, with its floating-point tensors in `dtype`."""
    if isinstance(x, Tensor):
        return x.to(dtype) if x.is_floating_point() else x
    if isinstance(x, dict):
        return type(x)({k: cast(v, dtype) for k, v in x.items()})
    if isinstance(x, (list, tuple)):
        return type(x)(cast(v, dtype) for v in x)
    return x


def logits_of(
    stock: nn.Module,
    inputs: dict[str, Any],
    report: Any,
    positions: Tensor,
    tokens: Tensor,
    vectors: dict[int, tuple[Tensor, Tensor]],
    features: dict[str, Any],
    prompts: list[tuple[int, int]],
) -> Tensor:
    """``reference.reference`` in the dtype of `stock`, with what the encoder gave."""
    dtype = text_model(stock).layers[0].self_attn.q_proj.weight.dtype
    with features_given(stock, cast(features, dtype)):
        given = cast(inputs, dtype), report, positions, tokens, cast(vectors, dtype)
        return reference(stock, *given, prompts=prompts)
