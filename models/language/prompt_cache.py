"""The KV-cache layer of models that keep the prompt whole and see a window of what they generate (Unlimited-OCR)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .slot_layer import SlotLayer


class PromptLayer(SlotLayer):
    """Mixin for such a layer; see ``SlotLayer``."""

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
