"""Calls of the composite model that need next to nothing: one token a row, behind a prompt.

Such a step is seen at the composite model, before any work: either nothing of the cache is pruned, or steps on it are
steady (``steady_steps``) and the composite model hands the mask on as it is. What the text model's hook would do is
then done there, and that hook has nothing to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vtc.models.stock.call_arguments import ATTENTIONS, signature_of
from vtc.models.stock.transformers_api import Cache

from .kv_cache import STOCK
from .steady_steps import Steady, steady_of


class ShortSteps:
    """Tells such calls.

    Parameters
    ----------
    core, lm : nn.Module
        The composite model and its text model.
    """

    def __init__(self, core: nn.Module, lm: nn.Module):
        find = signature_of(core).name
        self.lm = lm
        self.ids, self.cache = find("ids"), find("cache")
        self.mask, self.positions, self.stores = find("mask"), find("positions"), find("use cache")
        self.tensors = frozenset({self.ids, self.mask, self.positions})

    def find(self, args: tuple[Any, ...], kwargs: Mapping[Any, Any]) -> Steady | bool:
        """What is known of a call's steps, True where nothing has to be, False where the call is no such step."""
        ids, cache = kwargs.get(self.ids), kwargs.get(self.cache)
        if args or not isinstance(ids, Tensor) or ids.shape[-1] != 1 or not isinstance(cache, Cache):
            return False
        for name, value in kwargs.items():
            if isinstance(value, Tensor) and name not in self.tensors:  # pictures, or what else nobody knows
                return False
        steady = steady_of(cache)
        if steady is None:
            return STOCK.issuperset(map(type, cache.layers))
        asked = kwargs.get(self.mask)
        if asked is not None and kwargs.get(self.positions) is None:  # they may be made of the mask
            return False
        if kwargs.get(self.stores) is False or kwargs.get(ATTENTIONS):
            return False
        return steady if steady.serves_whole(self.lm, cache, asked) else False

    def begin(self, steady: Steady, kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Prepare such a step; the call's arguments, if they are other ones now."""
        steady.open(kwargs[self.cache])  # type: ignore[index]
        return None if kwargs.get(self.mask) is None else {**kwargs, self.mask: None}  # type: ignore[arg-type, dict-item]
