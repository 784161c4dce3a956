"""State of one forward through the text model: which columns are left, which tokens they are, and how to drop more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from vtc.models.layout.crop_groups import find_pictures
from vtc.models.layout.crops_by_family import Picture
from vtc.models.layout.spans import Batch, readable
from vtc.models.selection.column_indices import gather_columns, mark, places, write
from vtc.models.stock.tokenizer import Words
from vtc.models.stock.tripwire import Checks
from vtc.pruners.layout import Layout


@dataclass
class Run:
    """One forward of the text model.

    Attributes
    ----------
    full : int
        Columns given to the text model; `columns` points into them.
    columns : Tensor
        `[B, L]` int64: original column of each present one, -1 for padding.
    slots : Tensor
        `[B, L]` int64: `columns` plus the past's logical length, -1 for padding.
    rope_columns : Tensor
        `[B, L]`: where each present column stands in the position embeddings that the text model computed.
    rope_moved : bool
        Whether that may be elsewhere than in the columns that are left.
    valid : Tensor
        `[B, full]` bool: original columns that are no padding.
    padded : bool
        Whether any slot is -1.
    batch : Batch
        The spans, and what is present of each.
    mask_hidden : bool
        Whether the text model did not get the caller's mask, so that the one it makes itself means nothing.
    padding_only : bool
        Whether the caller gave no mask, or one of padding, whatever the composite model made of it.
    prompt : int, optional
        Slots from here on are candidates of assisted decoding, not the prompt.
    end : int
        The same, counted in columns of this forward; `full` without candidates.
    words : Words, optional
        The tokenizer, if any method reads the question.
    token_ids : Tensor, optional
        `[B, full]`, if any method reads the question or joins crops, unless the caller gave embeddings.
    asked_alone : dict
        By sample the tokens that were read for ``QuestionState``, once it was asked for.
    own_flops : dict
        By sample the FLOPs that methods' own networks took, as far as they count them.
    find_pictures : callable, optional
        ``Family.pictures``.
    ahead : callable, optional
        At a decoder stop: attention rows of the layer to come, `[B, H, R, L]`, which ``look_ahead`` asks for once.
    looking : tuple, optional
        During a look ahead: the columns `[B, R]` of the rows, whether their content alone counts, and the list that
        takes their attention.
    asking : Tensor, optional
        `[B]`: the original column of a row's last token where that is a visual one, else -2. It stays as a query when
        its token goes, since the next token is asked of it.
    unseen : Tensor, optional
        `[B, L]` bool: such columns, whose keys nobody sees but themselves.
    checks : Checks, optional
        What the tripwire compares, where it looks.
    windows : list of (int or None), optional
        The sliding window of each layer, once a mask was made.
    trail : dict
        By layer the columns that entered it, and the slots `[B, K]` of its keys where vtc made its mask.
    attending : list of int
        The layers with attention that ran.
    narrowed : bool
        Whether the text model lets only the last column through the rest of its layers.
    came_padded : bool
        ``padded`` as the forward began.
    as_stock : bool
        Whether all layers are plain causal ones, of which no window is exceeded.
    masked : bool
        Whether any of them was given a mask.
    masks_made : bool
        Whether the text model made masks for its layers.
    static : object, optional
        The phase of a static cache, within which its layers need nothing.
    renumbered : bool
        Whether positions are compact, and some token is gone or went before.
    away : Away, optional
        Within a layer that some tokens go round: what comes back behind it.
    lent : dict
        By such a layer what would have entered it; of the first layer only, else None.
    lent_to : tuple, optional
        The last choice of a loan, for one that repeats it.
    sizes : Tensor, optional
        `[S, N]` float32: how many tokens each original one stands for, once a method that ``calibrates`` has pruned.
    """

    full: int
    past: int
    columns: Tensor
    slots: Tensor
    rope_columns: Tensor
    valid: Tensor
    padded: bool
    batch: Batch
    cache: Any = None
    pruned: bool = False
    ids: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    present: list[int] = field(default_factory=list)
    newlines: Tensor | Literal[False] | None = False
    deepstack: Any = None
    memo: dict[Any, Any] = field(default_factory=dict)
    stage_count: int = 0
    mask_hidden: bool = False
    padding_only: bool = False
    prompt: int | None = None
    end: int = 0
    captured: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)
    notes: dict[int, dict[Any, Any]] = field(default_factory=dict)
    words: Words | None = None
    token_ids: Tensor | None = None
    questions: list[str] | None = None
    asked_alone: dict[int, int] = field(default_factory=dict)
    own_flops: dict[int, int] = field(default_factory=dict)
    find_pictures: Callable[[Any], Any] | None = None
    ahead: Callable[[str, bool], Tensor] | None = None
    looking: tuple[Tensor, bool, list[Tensor]] | None = None
    asking: Tensor | None = None
    unseen: Tensor | None = None
    checks: Checks | None = None
    windows: list[int | None] | None = None
    trail: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    attending: list[int] = field(default_factory=list)
    narrowed: bool = False
    came_padded: bool = False
    as_stock: bool = True
    masked: bool = False
    masks_made: bool = False
    renumbered: bool = False
    rope_moved: bool = False
    static: Any = None
    away: Any = None
    lent: dict[int, Tensor | None] = field(default_factory=dict)
    lent_to: tuple[Tensor, Tensor] | None = None
    sizes: Tensor | None = None

    @property
    def key_slots(self) -> Tensor:
        """`[B, L]`: ``slots`` as keys, -1 where nobody but the column itself sees them."""
        if self.unseen is None:
            return self.slots
        if "key slots" not in self.memo:
            self.memo["key slots"] = self.slots.masked_fill(self.unseen, -1)
        return self.memo["key slots"]

    def counted(self) -> Tensor | None:
        """`[B, L]`: how many tokens each present one of a span that lost some stands for, else 0; None: no span did."""
        if self.sizes is None:
            return None
        cut = [i for i, (n, full) in enumerate(zip(self.present, self.batch.lengths, strict=True)) if n < full]
        if not cut:
            return None
        rows, length = self.columns.shape
        pick = torch.tensor(cut, device=self.columns.device)
        found = self.sizes.new_zeros(rows, length + 1)
        sizes = self.sizes[pick].gather(1, self.ids[pick].clamp(min=0))
        mark(found, self.batch.samples[pick], self.token_columns(self.ids[pick], pick), length, sizes.flatten())
        return found[:, :length]

    def layouts(self) -> list[Layout]:
        """Layout of each span."""
        return self.batch.layouts()

    def pictures(self) -> list[Picture]:
        """The pictures whose crops are spans of their own; reads their places, and what else tells, off the device."""
        batch, find = self.batch, self.find_pictures
        if batch.pictures is None:
            batch.pictures = []
            if find is not None and readable(batch.columns):
                batch.pictures = find_pictures(batch, self.token_ids, find)
        return batch.pictures

    def current(self) -> Tensor:
        """`[B, full + 1]`: present column of each original one, -1 where it is gone (the last entry is a dummy)."""
        if "current" not in self.memo:
            self.memo["current"] = torch.nn.functional.pad(places(self.columns, self.full), (0, 1), value=-1)
        return self.memo["current"]

    def look_ahead(self, queries: str, content: bool) -> tuple[Tensor, Tensor]:
        """Attention rows of the layer before which a method now chooses, and ``current()``."""
        assert self.ahead is not None
        found = self.memo.setdefault("ahead", {})
        if (queries, content) not in found:
            found[queries, content] = self.ahead(queries, content)
        return found[queries, content], self.current()

    def token_columns(self, ids: Tensor, span: Tensor, place: Tensor | None = None) -> Tensor:
        """Present columns of tokens.

        Parameters
        ----------
        ids : Tensor
            `[R, n]` token ids in their spans, -1 is padding.
        span : Tensor
            `[R]` index of each row's span.
        place : Tensor, optional
            Another moment's ``current()``.

        Returns
        -------
        Tensor
            `[R, n]`, -1 for padding.
        """
        place = self.current() if place is None else place
        original = self.batch.columns[span].gather(1, ids.clamp(min=0))
        found = place[self.batch.samples[span]].gather(1, original)
        return torch.where(ids < 0, -1, found)

    def stand_in(self, before: Tensor) -> Tensor:
        """Where in the columns `before` the present ones stand, `[B, L]`; -1 is padding."""
        place = places(before, self.full).gather(1, self.columns.clamp(min=0))
        return torch.where(self.columns < 0, -1, place)

    def only_last(self) -> None:
        """Note that only the last column goes on."""
        if self.narrowed or self.columns.shape[1] == 1:
            return
        self.columns, self.slots = self.columns[:, -1:], self.slots[:, -1:]
        self.unseen = None if self.unseen is None else self.unseen[:, -1:]
        self.rope_columns = torch.zeros_like(self.columns)  # what goes along was narrowed too
        self.narrowed, self.memo, self.rope_moved = True, {}, True

    def drop(self, hidden: Tensor, ids: Tensor, present: list[int], merged: Tensor | None) -> Tensor:
        """Keep only the visual tokens `ids` (and all text).

        Parameters
        ----------
        hidden : Tensor
            `[B, L, D]` of the present columns.
        ids : Tensor
            `[S, n]` kept ids per span, ascending, -1 is padding.
        present : list of int
            How many per span.
        merged : Tensor or None
            `[S, n, D]` new vectors of the kept tokens.

        Returns
        -------
        Tensor
            `[B, L', D]`, right-aligned.
        """
        device = hidden.device
        rows, length = self.columns.shape
        spans = torch.arange(len(present), device=self.ids.device)
        kept = self.token_columns(ids, spans)
        if merged is not None:
            hidden = write(hidden, self.batch.samples, kept, merged)
        if present == self.present:
            return hidden
        visual = torch.zeros(rows, length + 1, dtype=torch.bool, device=self.columns.device)
        mark(visual, self.batch.samples, self.token_columns(self.ids, spans), length, True)
        mark(visual, self.batch.samples, kept, length, False)
        keep = ~visual[:, :length]
        unseen = None
        if self.asking is not None:
            asks = self.columns == self.asking[:, None]
            unseen = asks & ~keep if self.unseen is None else (asks & ~keep) | self.unseen
            keep |= asks
        if not self.batch.single or self.asking is not None:
            keep &= self.slots >= 0  # padding goes, and comes anew with the longest row
        width, padded = self.batch.width_after(self.full, present, self.padded, self.asking is not None)
        self.unseen = unseen
        order = self.narrow(keep, min(width, length))  # of the longest row nothing went, nor its last token
        self.padded, self.ids, self.present = padded, ids, present
        self.stage_count += 1
        return gather_columns(hidden, order.to(device), -2)

    def narrow(self, keep: Tensor, width: int) -> Tensor:
        """Leave only the columns `keep` `[B, L]`, right-aligned; which these are, `[B, width]`, -1 is padding."""
        length = keep.shape[1]
        order = torch.where(keep, torch.arange(length, device=keep.device), -1).sort(1).values[:, length - width :]

        def take(x: Tensor) -> Tensor:
            return torch.where(order < 0, -1, x.gather(1, order.clamp(min=0)))

        self.columns, self.slots, self.rope_columns = take(self.columns), take(self.slots), take(self.rope_columns)
        if self.unseen is not None:
            self.unseen = (order >= 0) & self.unseen.gather(1, order.clamp(min=0))
        self.memo, self.rope_moved, self.pruned = {}, True, True
        return order
