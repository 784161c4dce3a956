"""The registry of methods: the decorator, look-up with near-miss suggestions, entry points of plug-in packages."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from .base import Pruner

ENTRY_POINTS = "vtc.pruners"
_REGISTRY: dict[str, type[Pruner]] = {}
_loaded = False
P = TypeVar("P", bound=type[Pruner])


def register_pruner(name: str) -> Callable[[P], P]:
    """Class decorator that makes a ``Pruner`` dataclass available as `name`.

    Raises
    ------
    ValueError
        If the name is no lower-case identifier or is taken by another class.
    TypeError
        If the class is not a ``Pruner`` dataclass.
    """

    def add(cls: P) -> P:
        if not (isinstance(name, str) and name.isidentifier() and name == name.lower()):
            raise ValueError(f"a pruner's name must be a lower-case identifier, got {name!r}")
        if not (isinstance(cls, type) and issubclass(cls, Pruner) and is_dataclass(cls)):
            raise TypeError(f"@register_pruner({name!r}) needs a dataclass that extends vtc.Pruner, got {cls!r}")
        old = _REGISTRY.get(name)
        if old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"the name {name!r} is already registered by {old.__module__}.{old.__qualname__}")
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return add


def _load() -> None:
    global _loaded
    if _loaded:
        return
    _loaded = True
    import_module(__package__)  # the built-in methods register themselves on import
    for point in entry_points(group=ENTRY_POINTS):
        loaded = point.load()
        if isinstance(loaded, type) and issubclass(loaded, Pruner) and loaded.name == "":
            register_pruner(point.name)(loaded)


def list_pruners(pattern: str = "*") -> list[str]:
    """Names of the registered methods that match a shell-style `pattern`, sorted."""
    _load()
    return sorted(fnmatch.filter(_REGISTRY, pattern))


def nearest(word: str, known: list[str]) -> str:
    """A ``Did you mean`` clause for an error message, or the list of what there is."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else f"There is: {', '.join(sorted(known))}."


def pruner_class(name: str) -> type[Pruner]:
    """The class registered as `name`.

    Raises
    ------
    ValueError
        If there is none; the message names the nearest ones.
    """
    _load()
    if name not in _REGISTRY:
        raise ValueError(f"unknown pruner {name!r}. {nearest(name, list(_REGISTRY))}")
    return _REGISTRY[name]


def make_pruner(name: str, /, **params: Any) -> Pruner:
    """Build the method `name` with `params`.

    Raises
    ------
    ValueError
        For an unknown method or parameter (the nearest ones are named) or a value out of range.
    TypeError
        For a value of the wrong type.
    """
    cls = pruner_class(name)
    known = [f.name for f in fields(cls) if f.init]
    for key in params:
        if key not in known:
            raise ValueError(f"{name} has no parameter {key!r}. {nearest(key, known)}")
    return cls(**params)
