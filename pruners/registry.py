"""The registry of methods: the decorator, look-up with near-miss suggestions, files and packages of others."""

from __future__ import annotations

import difflib
import fnmatch
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from .base import Pruner
from .method_modules import HOME
from .plugins import import_source, load_plugins, plugins, refuse_source
from .without_torch import Needed, class_without_torch

_REGISTRY: dict[str, type[Pruner]] = {}
_IMPORTED: dict[str, list[str]] = {}  # what a user had imported, and the methods in it
OWN = "a method of your own is there once its file is imported: --import FILE.py, in Python vtc.import_methods(FILE)"
# what `vtc bench` compares with, and is no method
CONTROLS = {
    "downsample": "it makes pictures smaller before the model sees them. vtc bench compares with it, by itself; "
    "to use it, give the stock model smaller pictures"
}
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
    for module in dict.fromkeys(HOME.values()):  # methods register themselves on import
        import_module(f"{__package__}.{module}")
    load_plugins(register_pruner)


def import_methods(source: str | Path) -> list[str]:
    """Import a Python file (or a module, by its name) that registers methods, as ``--import`` does.

    Parameters
    ----------
    source : str or Path
        ``"my_methods.py"`` or ``"my_package.methods"``. Importing it again does nothing.

    Returns
    -------
    list of str
        The names of the methods that it registers.

    Raises
    ------
    ValueError
        If there is no such file, it fails, or it registers no method; nothing of it is registered then.
    """
    refuse_source(str(source))  # before torch is imported
    _load()
    path = Path(source).expanduser()
    key = str(path.resolve()) if path.is_file() else str(source)
    if key not in _IMPORTED:
        before = dict(_REGISTRY)
        try:
            module = import_source(str(source))  # its methods may be there already, or lie in modules that it imports
            new = sorted(
                name for name, cls in _REGISTRY.items() if before.get(name) is not cls or cls.__module__ == module
            )
            if not new:
                raise ValueError(
                    f"{source} registers no method: write @vtc.register_pruner('name') above a dataclass that "
                    "extends vtc.Pruner"
                )
        except ValueError:
            _REGISTRY.clear()
            _REGISTRY.update(before)
            raise
        _IMPORTED[key] = new
    return list(_IMPORTED[key])


def imported() -> list[str]:
    """What ``import_methods`` has imported, in that order, for other processes to import too."""
    return list(_IMPORTED)


def list_pruners(pattern: str = "*") -> list[str]:
    """Names of the registered methods that match a shell-style `pattern`, sorted."""
    _load()
    return sorted(fnmatch.filter(_REGISTRY, pattern))


def nearest(word: str, known: list[str]) -> str:
    """A ``Did you mean`` clause for an error message, or the list of what there is."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else f"There is: {', '.join(sorted(known))}."


def refuse_call(name: str, params: Mapping[str, Any]) -> Pruner | None:
    """Refuse what ``make_pruner`` would refuse; no torch is imported for vtc's own methods.

    Returns
    -------
    Pruner or None
        The method, which without torch can say where it prunes, but not choose; None where it can't be built so.

    Raises
    ------
    ValueError, TypeError
        As ``make_pruner``.
    """
    if name not in HOME:
        pruner_class(name)
        return None
    if "torch" in sys.modules:
        return make_pruner(name, **params)
    with suppress(Needed):
        return _make_without_torch(name, **params)
    return None


def _make_without_torch(name: str, /, **params: Any) -> Pruner:
    """``make_pruner`` in the code of a method that is run without torch."""
    if name not in HOME:
        return make_pruner(name, **params)
    return _build(class_without_torch(name, _make_without_torch), name, params)


def _build(cls: type[Pruner], name: str, params: Mapping[str, Any]) -> Pruner:
    known = [f.name for f in fields(cls) if f.init]
    for key in params:
        if key not in known:
            raise ValueError(f"{name} has no parameter {key!r}. {nearest(key, known)}")
    return cls(**params)


def pruner_class(name: str) -> type[Pruner]:
    """The class registered as `name`.

    Raises
    ------
    ValueError
        If there is none; the message names the nearest ones.
    """
    if name in HOME or plugins():  # an unknown name is told before torch is imported
        _load()
    if name in CONTROLS:
        raise ValueError(f"{name!r} is no pruner: {CONTROLS[name]}")
    if name not in _REGISTRY:
        raise ValueError(f"unknown pruner {name!r}. {nearest(name, [*HOME, *(_REGISTRY.keys() - HOME)])} ({OWN})")
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
    if "torch" not in sys.modules:  # importing it takes seconds: what is wrong is told before
        refuse_call(name, params)
    return _build(pruner_class(name), name, params)
