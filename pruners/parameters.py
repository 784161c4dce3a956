"""Checks a method's parameters against the types that its dataclass declares."""

from __future__ import annotations

import functools
import numbers
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints

PLAIN: dict[Any, tuple[str, type | tuple[type, ...]]] = {
    int: ("an int", numbers.Integral),
    float: ("a number", numbers.Real),
    str: ("a string", str),
    bool: ("True or False", bool),
    type(None): ("None", type(None)),
}


@functools.lru_cache(maxsize=256)
def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except (NameError, TypeError, AttributeError):  # a type that is there for a type checker only
        return {}


def check_types(pruner: Any, name: str) -> None:
    """Refuse a parameter of another type than declared; types that say nothing plain are left alone.

    Parameters
    ----------
    pruner : dataclass instance
        A method.
    name : str
        What it is called in the message.

    Raises
    ------
    TypeError
        Naming the parameter, its value and what is allowed.
    """
    cls: Any = type(pruner)
    hints = _hints(cls)
    for f in fields(pruner):
        if f.init and f.name in hints and not fits(getattr(pruner, f.name), hints[f.name]):
            value = getattr(pruner, f.name)
            raise TypeError(f"{name}.{f.name} must be {words(hints[f.name])}, got {value!r} ({type(value).__name__})")


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of the declared type. True and False are no numbers, a list may stand for a tuple."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if hint in PLAIN:
        return isinstance(value, PLAIN[hint][1]) and (hint is bool or not isinstance(value, bool))
    if origin in (tuple, list, Sequence):
        of = inner[0] if inner and (origin is not tuple or inner[-1] is Ellipsis) else Any
        return isinstance(value, (tuple, list)) and all(fits(one, of) for one in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    return True


def words(hint: Any) -> str:
    """The type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(one) for one in inner if not (one is int and float in inner)))
    if hint in PLAIN:
        return PLAIN[hint][0]
    if origin in (tuple, list, Sequence):
        return f"a list of {PLAIN[inner[0]][0].split()[-1]}s" if inner and inner[0] in (int, float, str) else "a list"
    return "a mapping" if origin in (dict, Mapping) else str(hint)
