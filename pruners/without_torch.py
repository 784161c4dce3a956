"""vtc's own methods built without torch, so that what a class says of its parameters is told before torch is imported.

What ``__post_init__`` of a method checks are plain values; only the methods' modules need torch. Here their own code is
run with something in torch's place that can be named, called and passed on, but not looked at. Where a check would
look, nothing is said: the real class, made later, decides.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from .method_modules import HOME

HERE = Path(__file__).parent
PACKAGE = __package__.split(".")
PREFIX = "without_torch."  # of the names of modules that are run here
REGISTRY = f"{__package__}.registry"
REAL = tuple(f"{__package__}.{name}" for name in ("base", "signals", "check_parameter_kinds", "method_modules"))
_RUN: dict[str, ModuleType] = {}


class Needed(BaseException):
    """Raised where a value of torch's would have to be known; no ``except Exception`` of a method's takes it."""


def _look(*_: Any, **__: Any) -> NoReturn:
    raise Needed


class Anything:
    """In place of torch, of whatever else is heavy, and of what comes out of them."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Needed,), {}) if name.endswith("Error") else Anything()  # errors stand behind `except`

    def __call__(self, *_: Any, **__: Any) -> Anything:  # noqa: D102
        return Anything()

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()

    __getitem__ = __or__ = __ror__ = __call__
    __bool__ = __len__ = __iter__ = __contains__ = __enter__ = __exit__ = __instancecheck__ = __subclasscheck__ = _look
    __int__ = __float__ = __index__ = __fspath__ = __neg__ = __str__ = __repr__ = __format__ = _look
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _look
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _look
    __pow__ = __rpow__ = __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = __matmul__ = __rmatmul__ = _look
    __hash__ = object.__hash__


def class_without_torch(name: str, make: Callable[..., Any]) -> type[Any]:
    """The class of one of vtc's own methods, to be built and asked, and not to choose.

    Parameters
    ----------
    name : str
        As in ``HOME``.
    make : callable
        Stands for ``make_pruner`` in the methods' own code.

    Raises
    ------
    Needed
        Where there is none without torch. So does an instance, while it is built or asked.
    """
    found: dict[str, type[Any]] = vars(_run(f"{__package__}.{HOME[name]}", make))["__methods__"]
    return found[name]


def _run(name: str, make: Callable[..., Any]) -> ModuleType:
    """The module `name` of ours, run here; what it imports of ours is as well."""
    if name in _RUN:
        return _RUN[name]
    place = HERE.joinpath(*name.split(".")[len(PACKAGE) :])
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():
        raise Needed
    code = SourceFileLoader(name, str(file)).get_code(name)
    assert code is not None
    package = name if place.is_dir() else name.rpartition(".")[0]
    module, methods = ModuleType(PREFIX + name), dict[str, type[Any]]()

    def register(called: str) -> Callable[[type[Any]], type[Any]]:
        def add(cls: type[Any]) -> type[Any]:
            cls.name, methods[called] = called, cls
            return cls

        return add

    registry = ModuleType(REGISTRY)
    vars(registry).update(register_pruner=register, make_pruner=make)

    def load(
        asked: str,
        within: Mapping[str, Any] | None = None,
        local: Mapping[str, Any] | None = None,
        names: tuple[str, ...] | None = (),
        level: int = 0,
    ) -> Any:
        """``import`` in that module."""
        if not level and asked.partition(".")[0] in sys.stdlib_module_names:
            return builtins.__import__(asked, within, local, names or ())
        whole = resolve_name("." * level + asked, package)
        if whole.split(".")[: len(PACKAGE)] != PACKAGE:
            return Anything()
        if whole in (REGISTRY, *REAL):
            return registry if whole == REGISTRY else import_module(whole)
        found = _run(whole, make)
        for part in names or ():
            if not hasattr(found, part):
                setattr(found, part, _run(f"{whole}.{part}", make))
        return found

    vars(module).update(__file__=str(file), __methods__=methods, __builtins__={**vars(builtins), "__import__": load})
    _RUN[name] = sys.modules[module.__name__] = module  # while a class is made, dataclasses look it up there
    try:
        exec(code, vars(module))  # our own source
    except BaseException:
        del _RUN[name]
        raise
    finally:
        del sys.modules[module.__name__]
    return module
