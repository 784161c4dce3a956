"""Methods around another one, which their ``first`` and ``first_params`` name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .base import FLAGS, Pruner
from .model_facts import ModelFacts
from .registry import make_pruner
from .signals import Signal

DEPTH = 32  # only to ask an inner method for its stops


class Around(Pruner):
    """A method around another one, ``_first``, whose stage, signals and flags are its own.

    Its subclasses have the parameters ``first`` and ``first_params``. ``own_flags`` are those that the inner method has
    no say in, and ``no_keep`` says why ``keep`` is no parameter of it.
    """

    first: str
    first_params: dict[str, Any] | None
    own_flags: ClassVar[tuple[str, ...]] = ()
    no_keep: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        no_keep = self.no_keep or f"what is kept is {self.name}'s own keep"
        self._first = inner_method(self.name, self.first, self.first_params, no_keep)
        for flag in FLAGS:  # of this instance only
            if flag not in self.own_flags:
                setattr(self, flag, getattr(self._first, flag))

    @property
    def inner(self) -> Pruner:
        """The first method."""
        return self._first

    def check_files(self) -> None:
        """Those of the first method."""
        self._first.check_files()

    def check_model(self, model: ModelFacts) -> None:
        """Whether the first method was made for it."""
        self._first.check_model(model)

    @property
    def stage(self) -> str:  # type: ignore[override]
        """The first method's."""
        return self._first.stage

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """The first method's."""
        return self._first.signals


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
