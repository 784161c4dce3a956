"""Whether a method's parameters are of the kinds that its dataclass declares: said at once, not by some crash later."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import fields
from typing import Any


def is_int(value: Any) -> bool:
    """Whether `value` is a whole number; True and False are none, nor is 1.0."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _all(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple | list) and all(map(of, value))


# annotation -> (whether a value is of it, in words); any other annotation is the method's own to check
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (is_int, "an int"),
    "float": (_is_real, "a number"),
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "str": (lambda value: isinstance(value, str), "a string"),
    "tuple[int, ...]": (_all(is_int), "a tuple of ints"),
    "tuple[float, ...]": (_all(_is_real), "a tuple of numbers"),
    "None": (lambda value: value is None, "None"),
}
PLAIN = {is_int: int, _is_real: float}  # numpy's numbers are saved as Python's


def check_parameters(pruner: Any) -> None:
    """Compare the fields of a method with their annotations.

    Parameters
    ----------
    pruner : Pruner
        The dataclass; ``keep`` has a check of its own.

    Raises
    ------
    TypeError
        One line with the parameter, what it must be and what it is.
    """
    for f in fields(pruner):
        declared = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
        kinds = [KINDS.get(part.strip()) for part in declared.split("|")]
        value = getattr(pruner, f.name)
        if f.name == "keep" or None in kinds:
            continue
        fit = next((of for of, _ in filter(None, kinds) if of(value)), None)
        if fit is None:
            allowed = " or ".join(words for _, words in filter(None, kinds))
            raise TypeError(
                f"{pruner.spoken_name}.{f.name}={value!r} is of the wrong kind "
                f"({type(value).__name__}); it must be {allowed}"
            )
        if fit in PLAIN and type(value) not in (int, float):
            setattr(pruner, f.name, PLAIN[fit](value))
