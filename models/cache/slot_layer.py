"""What a KV-cache layer needs to know which tokens it holds: a slot for each of its columns.

A pruned layer holds fewer columns than the sequence has tokens. ``get_seq_length`` keeps answering with the LOGICAL
length, which ``generate``, Qwen's rope code and a second turn need; ``get_mask_sizes`` answers with the physical one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.models.stock.tripwire import check_update


class Guard:
    """Of one cache: whether its first layer may now be given a column that nobody announced.

    That is so within a step that vtc sees and that needs nothing of it (``steady_steps``).
    """

    open = False


class SlotLayer:
    """Mixin: every physical column carries its slot.

    Attributes
    ----------
    slots : Tensor or None
        `[B, columns]` int64, the original index in the sequence of each column ever pushed; -1 is padding. Columns of
        steps that nobody announced follow the last one; they are written down when somebody reads this.
    shift : Tensor or None
        `[B]` original minus used position of the last token (compact positions; cache layer 0 only).
    dropped : int
        Logical minus physical columns.
    padded : bool
        Whether any slot is -1, or rows hold columns for different tokens.
    history : tuple
        The pruning steps that the columns went through: layers with equal history hold equal slots.
    pending : int or None
        Columns whose slots are known and that attention is about to store.
    prompt : int or None
        Slots before this one are seen whatever the window (``PromptLayer``).
    guard : Guard or None
        Tells columns that need no announcement.
    """

    _slots: Tensor | None = None
    shift: Tensor | None = None
    dropped: int = 0
    padded: bool = False
    history: tuple[int, ...] = ()
    pending: int | None = None
    prompt: int | None = None
    guard: Guard | None = None
    # of transformers' layers
    keys: Tensor | None
    values: Tensor | None
    is_initialized: bool

    @property
    def slots(self) -> Tensor | None:
        """See the class."""
        slots = self._slots
        if slots is not None and self.guard is not None:
            missing = self.physical() - slots.shape[1]
            if missing > 0:
                length = self.get_seq_length()
                new = torch.arange(length - missing, length, device=slots.device)
                self._slots = slots = torch.cat([slots, new.expand(slots.shape[0], -1)], 1)
        return slots

    @slots.setter
    def slots(self, slots: Tensor | None) -> None:
        self._slots = slots

    @property
    def source(self) -> Tensor | None:
        """What is written down of the slots, another object whenever rows or columns were moved."""
        return self._slots

    @property
    def has_slots(self) -> bool:
        """Whether it has any."""
        return self._slots is not None

    def physical(self) -> int:
        """Columns really held."""
        return self.keys.shape[-2] if self.is_initialized and self.keys is not None and self.keys.numel() else 0

    def held_keys(self) -> Tensor:
        """Keys of these, `[B, H, physical, D]`."""
        assert self.keys is not None
        return self.keys

    def announce(self, new: int, full: int) -> None:
        """Note that `new` columns of a forward over `full` tokens come next."""
        self.pending = new
        self.dropped += full - new

    def held_slots(self) -> Tensor | None:
        """Slots of the columns really held (a sliding layer forgets the oldest), `[B, physical]`."""
        n = self.physical()
        return self.slots[:, self.slots.shape[1] - n :] if n and self.slots is not None else None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store new columns.

        Raises
        ------
        RuntimeError
            If they are not those that were announced: the model is no longer wrapped, or is not understood.
        """
        if self._slots is not None:
            steady = self.guard is not None and self.guard.open
            check_update(1 if steady else self.pending, key_states)
            self.pending = None
        return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[misc]

    def get_seq_length(self, *args: Any) -> int:
        """Logical length: physical plus dropped columns."""
        n = super().get_seq_length(*args)  # type: ignore[misc]
        return n + self.dropped if n else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Physical key length and the offset that makes it end at the logical length."""
        n = self.physical()
        if self.guard is not None and self.guard.open:  # the mask is one over the columns that are held
            return n + query_length, 0
        return n + query_length, (self.get_seq_length() - n if n else 0)

    def _rows(self, move: Any) -> None:
        self.slots = None if self.slots is None else move(self.slots)
        self.shift = None if self.shift is None else move(self.shift)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the batch, slots included."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._rows(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat the batch, slots included."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._rows(lambda t: t.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Select from the batch, slots included."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._rows(lambda t: t[indices.to(t.device)])

    def crop(self, amount: int) -> None:
        """Forget the newest tokens.

        A positive `amount` is the LOGICAL length to keep (older transformers), a negative one how many to remove.
        """
        remove = self.get_seq_length() - amount if amount > 0 else -amount
        n, window = self.physical(), getattr(self, "sliding_window", None)
        past_window = window is not None and self.cumulative_length >= window  # type: ignore[attr-defined]
        if past_window and not getattr(self, "record_past", False):
            if remove > 0:
                raise RuntimeError("this sliding cache layer already forgot states that cropping would need")
            return
        if remove > 0 and self.keys is not None and self.values is not None:
            slots = self.slots  # written down while the columns are there
            self.keys, self.values = self.keys[..., : n - remove, :], self.values[..., : n - remove, :]
            if slots is not None:
                self.slots = slots[:, :-remove]
            if window is not None:
                self.cumulative_length -= remove  # type: ignore[attr-defined]
        if past_window and window is not None and self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[:, :, -window + 1 :], self.values[:, :, -window + 1 :]

    def reset(self) -> None:
        """Forget everything."""
        super().reset()  # type: ignore[misc]
        self.slots, self.shift, self.dropped, self.padded, self.history = None, None, 0, False, ()
        self.pending, self.guard = None, None


class PromptLayer(SlotLayer):
    """``SlotLayer`` of a layer that keeps the prompt whole and a window of what is generated (Unlimited-OCR)."""

    # of the model's layer
    prefill_keys: Tensor | None = None
    prefill_length: int | None
    prefill_cumulative_length: int

    def _prompt_columns(self) -> int:
        return self.prefill_keys.shape[-2] if self.prefill_keys is not None and self.prefill_keys.numel() else 0

    def physical(self) -> int:
        """Columns really held, the prompt's first."""
        return super().physical() + self._prompt_columns()

    def held_slots(self) -> Tensor | None:
        """Slots of these."""
        first, n = self._prompt_columns(), super().physical()
        if self.slots is None or not first + n:
            return None
        return torch.cat([self.slots[:, :first], self.slots[:, self.slots.shape[1] - n :]], 1)

    def announce(self, new: int, full: int) -> None:
        """The prompt is what the first forward gives, of which `new` columns are left; it may have been declared."""
        super().announce(new, full)
        if self.prompt is None:
            self.prompt = self.prefill_length if self.prefill_cumulative_length else full
            if not self.prefill_cumulative_length:
                self.prefill_length = new

    def held_keys(self) -> Tensor:
        """Keys of the columns really held."""
        keys = super().held_keys()
        return keys if self.prefill_keys is None else torch.cat([self.prefill_keys, keys], -2)

    def crop(self, amount: int) -> None:
        """Forget the newest tokens; see ``SlotLayer.crop``."""
        remove = self.get_seq_length() - amount if amount > 0 else -amount
        super(SlotLayer, self).crop(-remove)  # type: ignore[misc]
        if self.slots is not None and remove > 0:
            self.slots = self.slots[:, :-remove]

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.prompt = None


def prompt_twin(layer: type) -> Any:
    """The class of such a layer with slots."""
    return type(f"Pruned{layer.__name__}", (PromptLayer, layer), {})
