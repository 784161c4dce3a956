"""From placeholders to spans: which columns belong to which image of which sample, without reading the device.

How many tokens an image has is known on the host from the shapes of its features. Where they stand is data, and stays
on the device: the placeholders of a modality, in (batch, sequence) order, are cut into the items' lengths. Only which
sample an item belongs to must be read, for batches of several rows: one small read per prefill. Under fake tensors
(tracing without data), items are taken to be spread evenly over the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vtc.pruners.check_returned_values import readable
from vtc.pruners.layout import Layout

from .crops_by_family import Picture
from .items_behind_placeholders import Fed
from .vision_call_record import VisionRecord


@dataclass
class Span:
    """One image (or crop, or video) of one sample."""

    sample: int
    item: int
    modality: str
    order: int


@dataclass
class Batch:
    """All spans of a batch.

    Attributes
    ----------
    spans : list of Span
        By modality, then in (batch, sequence) order.
    lengths : list of int
        Original tokens of each span.
    columns : Tensor
        `[S, N]` int64: original column of each token, padded with 0.
    samples : Tensor
        `[S]` int64: row of the batch.
    single : bool
        Whether the batch has one row, so that its padding can stay where it is and nothing had to be read.
    row_lengths : list of int
        Real columns of each row (several rows only).
    ends : list of bool
        Whether the last token of a row's prompt is a visual one.
    pictures : list of Picture or None
        Pictures whose crops are spans of their own; None as long as no method asked.
    """

    spans: list[Span]
    lengths: list[int]
    columns: Tensor
    samples: Tensor
    fed: dict[str, Fed]
    single: bool
    row_lengths: list[int]
    ends: list[bool]
    _layouts: list[Layout] | None = None
    pictures: list[Picture] | None = None

    @classmethod
    def without_spans(cls, rows: int, device: torch.device) -> Batch:
        """Of a batch of text."""
        empty = torch.zeros(0, 0, dtype=torch.long, device=device)
        return cls([], [], empty, torch.zeros(0, dtype=torch.long, device=device), {}, rows == 1, [], [False] * rows)

    def layouts(self) -> list[Layout]:
        """Layout of each span; asks the records, which may read grids off the device."""
        if self._layouts is None:
            known: dict[str, Sequence[Layout]] = {m: f.record.layouts() for m, f in self.fed.items()}
            self._layouts = [known[s.modality][s.item] for s in self.spans]
        return self._layouts

    def alone(self) -> Batch:
        """The same spans without what was computed of them, on the CPU."""
        columns, samples = self.columns.cpu(), self.samples.cpu()
        return replace(self, columns=columns, samples=samples, fed={}, _layouts=self.layouts())

    def visual(self, rows: int, length: int) -> Tensor:
        """`[rows, length]` bool: the columns of visual tokens."""
        device = self.columns.device
        inside = torch.arange(self.columns.shape[1], device=device) < torch.tensor(self.lengths, device=device)[:, None]
        flat = self.samples[:, None] * length + self.columns
        # padding of a span's row points at its first token
        flat = torch.where(inside, flat, flat[:, :1])
        return (
            torch.zeros(rows * length, dtype=torch.bool, device=device)
            .scatter(0, flat.reshape(-1), True)
            .view(rows, length)
        )

    def per_span(self, values: Callable[[VisionRecord], Sequence[Any]]) -> list[Any]:
        """A record's per-item values, one for each span."""
        known = {m: values(f.record) for m, f in self.fed.items()}
        return [known[s.modality][s.item] for s in self.spans]

    def width_after(self, full: int, after: list[int], padded: bool, asking: bool) -> tuple[int, bool]:
        """Common width of the rows with `after` tokens left of each span, and whether any of them is padded.

        With `asking`, rows that end in a visual token have a place more, for that token as a query: a column of padding
        where the token itself is kept, which only the device knows.
        """
        more = [int(asking and end) for end in self.ends]
        widths = [n + m for n, m in zip(self.left_of_rows(full, after), more, strict=True)]
        if self.single:
            _refuse_empty(widths)
            return widths[0], padded or any(more)
        _refuse_empty([widths[span.sample] for span in self.spans])
        return max(widths), any(more) or min(widths) < max(widths)

    def left_of_rows(self, full: int, after: list[int]) -> list[int]:
        """Columns of each row with `after` tokens left of each span: without padding, but of a single row with it."""
        left = [full] if self.single else list(self.row_lengths)
        for span, n, k in zip(self.spans, self.lengths, after, strict=True):
            left[span.sample] -= n - k
        return left


def _refuse_empty(widths: list[int]) -> None:
    if not all(widths):
        raise ValueError(
            "a prompt of pictures alone would lose all its tokens, and nothing is left to answer: keep one at least, "
            "or put text beside the picture"
        )


def make_batch(masks: dict[str, Tensor], fed: dict[str, Fed], valid: Tensor | None, prompt: int) -> tuple[Batch, bool]:
    """Find the spans of a batch.

    Parameters
    ----------
    masks : dict of Tensor
        Per modality `[B, L]` bool, its placeholders.
    fed : dict of Fed
        Per modality what was fed.
    valid : Tensor or None
        `[B, L]` bool, columns that are no padding; None: all.
    prompt : int
        Columns behind these are candidates of assisted decoding.

    Returns
    -------
    Batch
        The spans.
    bool
        Whether any column is padding.

    Raises
    ------
    ValueError
        If items and placeholders disagree.
    """
    names = [m for m in masks if m in fed]
    rows, length = masks[names[0]].shape
    read = [*names, *(m for m in masks if m not in fed)]
    counts, row_lengths, ends = _read_counts([masks[m] for m in read], valid, rows, length, prompt)
    behind = [_place_of(name, fed[name], read, counts) for name in names]
    cut = {
        name: fed[name].cut_at_rows(counts[at] if counts else [sum(fed[name].lengths) // rows] * rows)
        for name, at in zip(names, behind, strict=True)
    }
    fed = {**fed, **cut}
    spans: list[Span] = []
    lengths: list[int] = []
    pieces: list[Tensor] = []
    samples: list[Tensor] = []
    orders = [0] * rows
    for i, name in enumerate(names):
        one = fed[name]
        total = sum(one.lengths)
        flat = masks[read[behind[i]]].reshape(-1).to(torch.int8)
        place = flat.sort(descending=True, stable=True).indices[:total]
        starts = torch.tensor([0, *one.lengths[:-1]], device=place.device).cumsum(0)
        pieces += (place % length).split(one.lengths)
        samples.append(place[starts] // length)
        for owner, item in _owners(one, rows, counts[behind[i]] if counts else None):
            spans.append(Span(owner, item, name, orders[owner]))
            orders[owner] += 1
        lengths += one.lengths
    columns = torch.nn.utils.rnn.pad_sequence(list(pieces), batch_first=True)
    batch = Batch(spans, lengths, columns, torch.cat(samples), fed, rows == 1, row_lengths, ends)
    padded = valid is not None and (counts is None or min(row_lengths) < length)
    return batch, padded


def _read_counts(
    masks: list[Tensor], valid: Tensor | None, rows: int, length: int, prompt: int
) -> tuple[list[list[int]] | None, list[int], list[bool]]:
    """Placeholders per modality and row, real columns per row, and which rows end in one: a prefill's one host read."""
    if not readable(masks[0]):
        return None, [length] * rows if rows > 1 else [], [False] * rows
    visual = torch.stack([m.to(masks[0].device) for m in masks])
    last = last_valid(valid, rows, prompt, visual.device)
    lines = [visual.any(0).gather(1, last[:, None])[:, 0].long(), *visual.sum(2)]
    lines.append(valid.sum(1).to(visual.device) if valid is not None else torch.full_like(lines[0], length))
    ends, *numbers = torch.stack(lines).tolist()
    return numbers[:-1], [] if rows == 1 and valid is None else numbers[-1], list(map(bool, ends))


def _place_of(name: str, fed: Fed, read: list[str], counts: list[list[int]] | None) -> int:
    """Which of the placeholders `read` the items of a modality stand behind: its own, unless only others match.

    Nemotron-H Omni puts videos behind the placeholders of pictures.
    """
    own, total = read.index(name), sum(fed.lengths)
    if counts is None or sum(counts[own]) == total:
        return own
    others = [i for i, count in enumerate(counts) if sum(count) == total and not sum(counts[own])]
    if not others:
        raise _mismatch(fed, counts[own])
    return others[0]


def _mismatch(fed: Fed, counts: list[int]) -> ValueError:
    return ValueError(
        f"the image features fed to the model ({len(fed.lengths)} items, {sum(fed.lengths)} tokens) do not match the "
        f"placeholders of the batch ({counts} per row)"
    )


def last_valid(valid: Tensor | None, rows: int, length: int, device: torch.device) -> Tensor:
    """`[B]`: of the first `length` columns each row's last that is no padding; `valid` `[B, L]` bool, None: all."""
    if valid is None:
        return torch.full((rows,), length - 1, device=device)
    return torch.where(valid[:, :length].to(device), torch.arange(length, device=device), 0).amax(1)


def _owners(fed: Fed, rows: int, counts: list[int] | None) -> list[tuple[int, int]]:
    """(sample, recorded item) of each fed item."""
    n, repeats = len(fed.lengths), fed.repeats
    if rows == 1:
        return [(0, i % max(1, len(fed.record.lengths))) for i in range(n)]
    if counts is None:  # values can't be read: evenly spread
        share = n // rows
        per_row = [share] * rows
    else:
        per_row, i = [], 0
        for count in counts:
            start, left = i, count
            while left > 0 and i < n:
                left -= fed.lengths[i]
                i += 1
            if left != 0:
                if repeats > 1:
                    raise _mixed_up(repeats)
                raise _mismatch(fed, counts)
            per_row.append(i - start)
    owners: list[tuple[int, int]] = []
    item = 0
    for row, share in enumerate(per_row):
        if row % repeats == 0:
            base = item
            item += share
        owners += [(row, base + j) for j in range(share)]
    first = fed.first
    if first is not None and repeats > 1:
        before = {item: k for k, (_, item) in reversed(list(enumerate(owners)))}
        if any(first[k] != first[before[item]] for k, (_, item) in enumerate(owners)):
            raise _mixed_up(repeats)
    return owners


def _mixed_up(repeats: int) -> NotImplementedError:
    return NotImplementedError(
        f"this version of transformers mixes up the pictures of a sample that has several when it makes {repeats} "
        "sequences of it (A, B becomes A, A, B, B, also without vtc): give each sample one picture, or, without beams, "
        f"put every sample {repeats} times into the batch"
    )
