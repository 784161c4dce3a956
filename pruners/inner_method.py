"""The method inside another one, as the outer one's ``first`` and ``first_params`` name it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import Pruner
from .registry import make_pruner


def inner_method(owner: str, first: str, params: Mapping[str, Any] | None, no_keep: str) -> Pruner:
    """Build the method `first`, without a keep.

    Parameters
    ----------
    owner : str
        The outer method's name, for errors.
    first, params : str and mapping
        As they were given.
    no_keep : str
        Why there is no ``keep`` among them.

    Raises
    ------
    TypeError, ValueError
        For `params` of another type, the outer method itself, a keep, and what ``make_pruner`` refuses.
    """
    if first == owner:
        raise ValueError(f"{owner}.first must be another method's name, got {first!r}")
    if not isinstance(params, Mapping | None):
        raise TypeError(f"{owner}.first_params must be a dict of parameters, got {params!r}")
    if "keep" in (params or {}):
        raise ValueError(f"{owner}.first_params: {no_keep}")
    return make_pruner(first, **(params or {}))
