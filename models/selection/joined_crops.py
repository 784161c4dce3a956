"""The spans of a step as a method with ``joins_crops`` sees them: all crops of a picture in one row, and back again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vtc.models.layout.crops_by_family import Picture
from vtc.pruners.base import Pruner
from vtc.pruners.signals import Signal
from vtc.pruners.visual_tokens import SignalSource, VisualTokens

from .select import select_tokens

Choice = dict[int, tuple[Tensor, Tensor | None, Tensor | None]]


def choose(pruner: Pruner, tokens: VisualTokens, pictures: Sequence[Picture] = ()) -> Choice:
    """Per span the ids that `pruner` keeps, ascending, and where it merges their new vectors and sizes.

    Notes
    -----
    With `pictures` among the spans, how many each of their crops keeps is data: one host sync.
    """
    joined = Joined.of(tokens, pictures)
    given = tokens if joined is None else joined.tokens
    columns, vectors, weights = select_tokens(pruner, given)
    found: Choice = {}
    kept = [ids.gather(0, c) for ids, c in zip(given.ids, columns, strict=True)]
    if joined is None:
        return dict(zip(tokens.span, zip(kept, vectors, weights, strict=True), strict=True))
    split = []
    for i, picture in enumerate(joined.pictures):
        if picture is None:
            found[given.span[i]] = kept[i], vectors[i], weights[i]
            continue
        owner, own = (_on(x, kept[i])[kept[i]] for x in (picture.owner, picture.own))
        order = (owner * len(picture.own) + own).argsort()
        counts = (owner == torch.arange(len(picture.spans), device=owner.device)[:, None]).sum(1)
        merged = [None if x is None else x[order] for x in (vectors[i], weights[i])]
        split.append((picture, own[order], merged, counts))
    sizes = iter(torch.cat([counts for *_, counts in split]).tolist())
    for picture, ids, merged, _ in split:
        lengths = [next(sizes) for _ in picture.spans]
        new = [[None] * len(lengths) if x is None else x.split(lengths) for x in merged]
        found.update(zip(picture.spans, zip(ids.split(lengths), *new, strict=True), strict=True))
    return found


def pass_on(spans: Sequence[int], asked: Sequence[int], present: Sequence[int], budgets: list[int]) -> None:
    """Let the other crops of a picture keep what an earlier step has left one too small for; changes `budgets`."""
    left = sum(asked[i] - budgets[i] for i in spans)
    for i in spans:
        more = min(left, present[i] - budgets[i])
        budgets[i] += more
        left -= more


def _on(x: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(x).to(like.device)


@dataclass
class Joined(SignalSource):
    """Rows of spans put together to pictures.

    Attributes
    ----------
    inner : VisualTokens
        The spans, one a row.
    tokens : VisualTokens
        Pictures, and the spans that are none's crops.
    pictures : list of Picture or None
        Of each row of `tokens`.
    flat : Tensor
        `[R, N]`: where each of their tokens stands in the flattened rows of `inner`; 0 for padding.
    last : list of int
        The row of `inner` that stands last in the sequence, for each row of `tokens`.
    """

    inner: VisualTokens
    tokens: VisualTokens
    pictures: list[Picture | None]
    flat: Tensor
    last: list[int]

    @classmethod
    def of(cls, inner: VisualTokens, pictures: Sequence[Picture]) -> Joined | None:
        """`inner` with the spans of each of `pictures` as one row; None if none of them is there."""
        row_of = {span: i for i, span in enumerate(inner.span)}
        whole = [p for p in pictures if p.spans[0] in row_of]
        if not whole:
            return None
        crops = {span for p in whole for span in p.spans}
        units: list[tuple[Picture | None, list[int]]] = [(p, [row_of[span] for span in p.spans]) for p in whole]
        units += [(None, [row]) for span, row in row_of.items() if span not in crops]
        units.sort(key=lambda unit: min(unit[1]))
        width = inner.ids.shape[1]
        ids, flat = [], []
        for picture, rows in units:
            own = [inner.ids[r, : inner.counts[r]] for r in rows]
            if picture is not None:
                own = [_on(table, x)[x] for table, x in zip(picture.ids, own, strict=True)]
            place = torch.cat([torch.arange(inner.counts[r], device=inner.ids.device) + r * width for r in rows])
            one = torch.cat(own).sort()
            ids.append(one.values)
            flat.append(place[one.indices])
        index = pad_sequence(ids, batch_first=True, padding_value=-1)
        where = pad_sequence(flat, batch_first=True)
        first = [min(rows) for _, rows in units]
        layouts = [inner.layouts[rows[0]] if p is None else p.layout for p, rows in units]
        features = inner.features.flatten(0, 1)[where.to(inner.features.device)]
        joined = cls(inner, inner, [p for p, _ in units], where, [max(rows) for _, rows in units])
        joined.declared = () if inner.source is None else inner.source.declared
        joined.tokens = replace(
            inner,
            features=features.masked_fill((index < 0).to(features.device)[..., None], 0),
            ids=index,
            counts=[sum(inner.counts[r] for r in rows) for _, rows in units],
            budgets=[sum(inner.budgets[r] for r in rows) for _, rows in units],
            layouts=layouts,
            sample=inner.sample[torch.tensor(first, device=inner.sample.device)],
            order=[inner.order[r] for r in first],
            span=[inner.span[r] for r in first],
            source=joined,
        )
        return joined

    def _rows(self, tokens: VisualTokens) -> list[int]:
        """Which rows of ours `tokens` are."""
        row_of = {span: i for i, span in enumerate(self.tokens.span)}
        return [row_of[span] for span in tokens.span]

    def count_flops(self, tokens: VisualTokens, row: int, flops: int) -> None:
        """See ``VisualTokens.count_flops``."""
        self.inner.count_flops(self.inner.span.index(tokens.span[row]), flops)

    def read(self, signal: Signal, tokens: VisualTokens) -> Tensor:
        """See ``VisualTokens.read``."""
        found = self.inner.read(signal)
        if signal.is_attention:
            found = found.movedim(-1, 1)
        flat = self.flat[self._rows(tokens), : tokens.ids.shape[1]].to(found.device)
        pad = (tokens.ids < 0).to(found.device)
        found = found.flatten(0, 1)[flat].masked_fill(pad.view(*pad.shape, *[1] * (found.dim() - 2)), 0)
        return found.movedim(1, -1) if signal.is_attention else found

    def text(self, signal: Signal) -> Tensor:
        """See ``VisualTokens.text``."""
        return self.inner.text(signal)

    def text_valid(self, tokens: VisualTokens | None) -> Tensor:
        """See ``VisualTokens.text_valid``."""
        if tokens is None:
            return self.inner.text_valid()
        return self.inner.take([self.last[i] for i in self._rows(tokens)]).text_valid(after=True)

    def final_norm(self, x: Tensor) -> Tensor:
        """See ``VisualTokens.final_norm``."""
        return self.inner.final_norm(x)

    def project(self, x: Tensor) -> Tensor:
        """See ``VisualTokens.project``."""
        return self.inner.project(x)

    @property
    def projector(self) -> nn.Module:
        """See ``VisualTokens.projector``."""
        return self.inner.projector

    @property
    def embeddings(self) -> Tensor:
        """See ``VisualTokens.embeddings``."""
        return self.inner.embeddings

    @property
    def vocabulary_size(self) -> int:
        """See ``VisualTokens.vocabulary_size``."""
        return self.inner.vocabulary_size

    def questions(self) -> list[str]:
        """See ``VisualTokens.questions``."""
        return self.inner.questions()
