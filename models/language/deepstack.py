"""Features of pictures that enter the text model at its layers, beside those at its input or in place of them.

A text model is given them in one of two forms. A list (Qwen3-VL, Granite-Docling) is added behind its first layers. A
mapping (Granite 4 vision) says before which layers, and then visual columns are zero at the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.models.selection.column_indices import gather_columns
from vtc.models.stock.call_arguments import Call


@dataclass
class Deepstack:
    """What is added at which layers of one forward.

    Attributes
    ----------
    ranks : Tensor
        `[B, L]` int64: of each original column its row in the features, -1 where it has none.
    features : dict
        By the layer before which they are added, `[n, D]`; the number of layers: behind the last one.
    at_input : bool
        Whether visual columns hold something at the input already.
    """

    ranks: Tensor
    features: dict[int, Tensor]
    at_input: bool

    @classmethod
    def taken(cls, call: Call, device: torch.device) -> Deepstack | None:
        """Take over what a text model is called with, which it would add by a mask over all columns; None: nothing."""
        given = {at_input: call.get(meaning) for at_input, meaning in ((True, "deepstack"), (False, "injected"))}
        at_input = next((at for at, features in given.items() if features is not None), None)
        if at_input is None:
            return None
        found, mask = call.pop("deepstack" if at_input else "injected"), call.pop("deepstack places").to(device)
        mask = mask.reshape(*mask.shape[:2], -1)[..., 0]  # may come with a dimension for the width
        ranks = torch.where(mask, mask.reshape(-1).long().cumsum(0).view_as(mask) - 1, -1)
        layers = found.items() if isinstance(found, Mapping) else enumerate(found, 1)
        return cls(ranks, {int(layer): features for layer, features in layers}, at_input)

    def added(self, layer: int, hidden: Tensor, columns: Tensor) -> Tensor:
        """`hidden` `[B, n, D]` of the original `columns` `[B, n]` (-1: padding) with what comes before `layer`."""
        features: Any = self.features.get(layer)
        if features is None:
            return hidden
        where = torch.where(columns < 0, -1, gather_columns(self.ranks, columns, -1))
        features = features.to(hidden.device, hidden.dtype)
        features = torch.cat([features, features.new_zeros(1, features.shape[1])])
        return hidden + features[torch.where(where < 0, features.shape[0] - 1, where).to(hidden.device)]

    def first(self, hidden: Tensor, columns: Tensor) -> Tensor:
        """Embeddings as methods see them: with the first features where nothing of a picture is at the input."""
        return hidden if self.at_input or not self.features else self.added(min(self.features), hidden, columns)
