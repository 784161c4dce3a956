"""State of one vision call: what is left of the tower's rows, what each item kept, and what the hooks captured.

Positions are those of ``rows_of_each_item``. Once something is pruned, the tower runs one row of the `M` that are left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vtc.models.layout.newlines import fill_with_newlines
from vtc.models.layout.vision_call_record import VisionStep
from vtc.models.selection.select import select_tokens
from vtc.models.stock.attention_api import is_flash_attention_requested
from vtc.models.stock.call_arguments import Call
from vtc.pruners.base import Pruner, Stop, resolve_keep
from vtc.pruners.layout import LazyLayouts
from vtc.pruners.signals import EncoderAttention, EncoderSpecial, Signal
from vtc.pruners.visual_tokens import VisualTokens

from .captures_needed import PIXELS, kind_of
from .encoder_signals import StopSignals
from .packed_segments import Segments
from .pixels import pixels_of_patches
from .rows_of_each_item import TowerGeometry


@dataclass
class VisionRun(TowerGeometry):
    """One vision call.

    Attributes
    ----------
    present : Tensor or None
        `[M]` positions left, ascending; None as long as nothing is pruned.
    sizes : list of int
        How many of them belong to each item.
    content, kept : list of Tensor
        Per item the sorted ids of the tokens left: without and with newlines.
    weight : Tensor or None
        `[total]` float32, once tokens were merged: how many tokens each position stands for.
    seconds : float
        Of choosing, where that is timed.
    captured : dict
        Rows by (kind, layer), each `[R, T, C]` or `[T, C]` (in pieces).
    """

    present: Tensor | None = None
    sizes: list[int] = field(default_factory=list)
    content: list[Tensor] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    steps: list[VisionStep] = field(default_factory=list)
    captured: dict[tuple[str, int], list[Tensor]] = field(default_factory=dict)
    segments: dict[int, Segments | None] = field(default_factory=dict)
    weight: Tensor | None = None
    seconds: float = 0.0
    _history: dict[int, Tensor] = field(default_factory=dict)
    _memo: dict[Any, Any] = field(default_factory=dict)

    def _begin(self, device: torch.device) -> None:
        index = self.index(device)
        if self.family.newlines:
            layouts = self.layouts()
            self.content = [(~lay.newline).nonzero()[:, 0].to(device) for lay in layouts]
        else:
            self.content = [torch.arange(len(i), device=device) for i in index]
        self.kept = [torch.arange(len(i), device=device) for i in index]
        self._memo["left"] = [self._whole(i, device) for i in range(len(index))]

    def _whole(self, item: int, device: torch.device) -> Tensor:
        """All positions of an item: padding patches that no token stands for are left alone while it is unpruned."""
        if len(self.shape) == 1:
            return self._index[item].reshape(-1)
        rows = self.rows(item)
        return torch.arange(rows.start * self.shape[1], rows.stop * self.shape[1], device=device)

    def _left(self, item: int) -> Tensor:
        """Positions of a pruned item: its kept tokens' patches and the prefix of each of its rows."""
        patches = self._index[item][self.content[item]].reshape(-1)
        return torch.cat([self.special(item).reshape(-1), patches])

    # ------------------------------------------------------------------ pruning

    def prune(self, pruner: Pruner, stop: Stop, layer: int, x: Tensor) -> Tensor:
        """Let `pruner` choose among the tokens left in `x`, the layer's input, and give back what is left of it."""
        assert stop.keep is not None
        if not self.content:
            self._begin(x.device)
        budgets = [min(len(k), resolve_keep(stop.keep, len(i))) for k, i in zip(self.kept, self._index, strict=True)]
        counts = [len(c) for c in self.content]
        active = [i for i, (k, n) in enumerate(zip(budgets, counts, strict=True)) if k < n]
        if active:
            tokens = self._tokens(pruner, stop, layer, x, active, budgets)
            columns, vectors, weights = select_tokens(pruner, tokens)
            for row, i in enumerate(active):
                ids = tokens.ids[row].gather(0, columns[row])
                self.content[i] = self.kept[i] = ids.to(self._index[i].device)
                self._memo["left"][i] = self._left(i)
        for i, (k, n) in enumerate(zip(budgets, counts, strict=True)):
            if n <= k < len(self.kept[i]):
                self.kept[i] = fill_with_newlines(self.content[i], self.layouts()[i], k)
        self.steps.append(VisionStep(layer, list(self.kept)))
        if not active:
            return x
        left = sum(len(p) for p in self._memo["left"])
        if left == x.shape[:-1].numel() and all(v is None for v in vectors):
            return x  # methods that count by themselves may find nothing to drop
        x = self._drop(x)
        for row, i in enumerate(active):
            x = self._write(x, i, vectors[row], weights[row])
        return x

    def _write(self, x: Tensor, item: int, vectors: Tensor | None, weights: Tensor | None) -> Tensor:
        """Put the merged tokens of an item into what is left; a token is one patch here."""
        if vectors is None:
            return x
        patches = self._index[item][self.content[item]][:, 0]
        if weights is not None:
            if self.weight is None:
                self.weight = torch.ones(self.total, device=patches.device)
            self.weight = self.weight.index_copy(0, patches, weights.to(self.weight))
        return x.index_copy(1, self._where()[patches].to(x.device), vectors.to(x)[None])

    def _tokens(
        self, pruner: Pruner, stop: Stop, layer: int, x: Tensor, active: list[int], budgets: list[int]
    ) -> VisualTokens:
        flat = x.reshape(-1, x.shape[-1])
        states = []
        for i in active:
            place = self._index[i][self.content[i]]
            place = place if self.present is None else self._where()[place]
            states.append(flat[place.to(x.device)])  # a tower may be spread over devices
        return VisualTokens(
            features=pad_sequence([s.mean(1) if s.shape[1] > 1 else s[:, 0] for s in states], batch_first=True),
            ids=pad_sequence([self.content[i].to(x.device) for i in active], batch_first=True, padding_value=-1),
            counts=[len(self.content[i]) for i in active],
            budgets=[budgets[i] for i in active],
            layouts=LazyLayouts(self.layouts, active),
            # which sample an item belongs to is not known yet; with 0 everywhere a batch gives what its samples give
            sample=torch.tensor(active, device=x.device),
            order=[0] * len(active),
            span=active,
            stage="vision",
            layer=layer,
            last=self.last,
            state=self._memo.setdefault(("state", id(pruner)), {}),
            size=self._sizes(active, x.device),
            source=StopSignals(self, pruner.signals_at(stop), layer),
        )

    def _sizes(self, active: list[int], device: torch.device) -> Tensor | None:
        if self.weight is None:
            return None
        rows = [self.weight[self._index[i][self.content[i]][:, 0]].to(device) for i in active]
        return pad_sequence(rows, batch_first=True)

    def _drop(self, x: Tensor) -> Tensor:
        left: list[Tensor] = self._memo["left"]
        present = torch.cat(left).sort().values
        now = present if self.present is None else self._where()[present]
        x = x.reshape(-1, x.shape[-1]).index_select(0, now.to(x.device))
        self.present, self.sizes = present, [len(p) for p in left]
        self._memo.pop("where", None)
        self._memo.pop("rope", None)
        self.segments = {}
        self._history[len(present)] = present
        return x if len(self.shape) == 1 else x[None]

    def _where(self) -> Tensor:
        """`[total]`: where in the row of what is left each position stands."""
        if "where" not in self._memo:
            assert self.present is not None
            where = torch.zeros(self.total, dtype=torch.long, device=self.present.device)
            ranks = torch.arange(len(self.present), device=where.device)
            self._memo["where"] = where.index_copy(0, self.present, ranks)
        return self._memo["where"]

    # ------------------------------------------------------------------ running on what is left

    def note_chunks(self, layer: int, call: Call) -> None:
        """Remember a packed layer's boundaries where its attention will see the whole row at once (flash)."""
        ends = call.get("chunk ends")
        if ends is not None and is_flash_attention_requested(self.tower.config):
            ids = torch.searchsorted(ends[1:].long(), torch.arange(self.total, device=ends.device), right=True)
            self.segments[layer] = Segments(ids, len(ends) - 1, self._width(layer))

    def cut_arguments(self, layer: int, call: Call) -> None:
        """Cut a layer's arguments to what is left."""
        assert self.present is not None
        device = self.present.device
        if len(self.shape) == 2:
            count = self.shape[0]
            self.segments[layer] = self._segments("rows", self.present // self.shape[1], count, self.shape[1])
        else:
            ends = call.get("chunk ends")
            key = ("ends", id(ends))
            if key not in self._memo or self._memo[key][1] is not self.present:
                ids = torch.searchsorted(ends[1:].to(device, torch.long), self.present, right=True)
                found = self._segments(None, ids, len(ends) - 1, self._width(layer))
                self._memo[key] = (ends, self.present, found)  # holds `ends`, so that its id stays its own
            self.segments[layer] = self._memo[key][2]
            rope = call.get("rotary")
            if self._memo.get("rope", (None,))[0] is not rope:
                self._memo["rope"] = (rope, tuple(p.index_select(0, self.present.to(p.device)) for p in rope))
            call.put("rotary", self._memo["rope"][1])
            # one chunk, on the host: the tower's own loop over chunks must not wait for the device
            call.put("chunk ends", torch.tensor([0, len(self.present)], dtype=torch.int32))
            if call.get("longest chunk") is not None:
                call.put("longest chunk", len(self.present))
        if self.weight is not None:
            segments = self.segments[layer]
            assert segments is not None
            segments.bias = self.weight.log()[self.present]
        call.kwargs["vtc_segments"] = self.segments[layer]

    def _segments(self, memo: str | None, ids: Tensor, count: int, width: int) -> Segments:
        key = ("segments", memo, len(ids))
        if memo and key in self._memo:
            return self._memo[key]
        # as many segments as items: each item is one segment, whose length the host knows
        lengths = self.sizes if count == len(self.sizes) else None
        found = Segments(ids, count, width, lengths)
        if memo:
            self._memo[key] = found
        return found

    def _width(self, layer: int) -> int:
        full = getattr(self.tower, "fullatt_block_indexes", None)
        if full is not None and layer not in full:
            side = self.tower.window_size // self.tower.patch_size
            return int(side // self.tower.spatial_merge_size * self.tower.spatial_merge_size) ** 2
        grids = self.call.grids
        return self.total if grids is None else max(h * w for _, h, w in grids)

    def restore(self, x: Tensor) -> Tensor:
        """Rows of what was left at some time (`[M, C]` or `[1, M, C]`) in the unpruned shape, zeros elsewhere."""
        flat = x.reshape(-1, x.shape[-1])
        present = self._history.get(len(flat))
        if present is None or tuple(x.shape[:-1]) == self.shape:
            return x
        out = flat.new_zeros(self.total, flat.shape[-1])
        return out.index_copy(0, present.to(x.device), flat).view(*self.shape, -1)

    def restore_units(self, x: Tensor, unit: int) -> Tensor:
        """The same for a merger's output, one row per unit."""
        if self.present is None:
            return x
        units = self.present.view(-1, unit)[:, 0] // unit
        return x.new_zeros(self.total // unit, x.shape[-1]).index_copy(0, units.to(x.device), x)

    # ------------------------------------------------------------------ signals

    def capture(self, kind: str, layer: int, rows: Tensor) -> None:
        """Store `[R, T, C]` or `[1, t, C]` rows (a chunk of a packed tower, or what is left of a pruned one)."""
        if self.present is not None:
            rows = self.restore(rows)
        elif self.family.packed and rows.dim() == 3 and not (kind == "projector" and self.family.reads_units):
            rows = rows[0]
        self.captured.setdefault((kind, layer), []).append(rows)

    def segment_rows(self, layer: int, query: Tensor) -> Tensor:
        """The segment of each patch of an attention call `[B, H, T, d]`, counted over all items: `[B, T, 1]`."""
        known = self.segments.get(layer)
        if known is not None:
            return known.ids[None, :, None]
        # rows of a dense tower are segments; the calls of a packed one follow each other, one a segment
        past = len(self.captured.get(("segments", layer), ()))
        return torch.arange(past, past + len(query), device=query.device)[:, None, None].expand(-1, query.shape[2], 1)

    def patches(self, kind: str, layer: int) -> Tensor:
        """`[total, C]`: the captured rows at their flat positions."""
        found = torch.cat(self.captured[kind, layer])
        return pixels_of_patches(found, self) if kind == PIXELS else found.flatten(0, -2)

    def forget(self, captured: Iterable[tuple[str, int]]) -> None:
        """Free what nobody will read again."""
        for key in captured:
            self.captured.pop(key, None)

    def aligned(self, signal: Signal, layer: int) -> list[Tensor]:
        """A signal per item: `[H, n]`, `[n, U, C]`, or `[R, P, C]` of special tokens."""
        kind = kind_of(signal, self.prefix)
        rows = torch.cat(self.captured[kind, -1 if kind == "projector" else layer])
        if isinstance(signal, EncoderSpecial):
            if not self.prefix:
                return [rows.new_zeros(1, 0, rows.shape[-1])] * len(self.call.lengths)
            return list(rows[:, : self.prefix].split(self.family.rows(self.call) if self.family.rows else 1))
        if kind == "projector" and self.family.reads_units:
            if self.family.packed:
                return list(rows.split(self.call.lengths))
            return list(rows.unflatten(-1, (self.family.unit(self.call.config), -1)))
        if kind != "projector" and rows.dim() == 3:
            rows = rows[:, self.cut :]
        items = self.family.align(self.call, rows)  # type: ignore[misc]
        return [i.mean(1).transpose(0, 1) for i in items] if isinstance(signal, EncoderAttention) else items
