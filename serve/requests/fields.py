"""Fields of a JSON object, each checked for its kind and range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .refusal import Refusal


def object_of(value: Any, name: str) -> Mapping[str, Any]:
    """`value` as a JSON object."""
    if not isinstance(value, Mapping):
        raise Refusal(f"{name} must be an object, got {shown(value)}", param=name)
    return value


def text_of(value: Any, name: str) -> str:
    """`value` as a string that can be written in UTF-8."""
    if not isinstance(value, str):
        raise Refusal(f"{name} must be a string, got {shown(value)}", param=name)
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise Refusal(f"{name} holds half of a surrogate pair, which is no character", param=name)
    return value


def number_of(
    given: Mapping[str, Any], name: str, low: float, high: float, default: Any = None, whole: bool = False
) -> Any:
    """A number in [`low`, `high`]; `default` where it is not given, or null."""
    value = given.get(name)
    if value is None:
        return default
    kinds = (int,) if whole else (int, float)
    what = "an integer" if whole else "a number"
    bounds = f"{what} from {low:g} to {high:g}" if math.isfinite(high) else f"{what} of at least {low:g}"
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise Refusal(f"{name} must be {bounds}, got {shown(value)}", param=name)
    return value


def flag_of(given: Mapping[str, Any], name: str) -> bool:
    """True or false; false where it is not given, or null."""
    value = given.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise Refusal(f"{name} must be true or false, got {shown(value)}", param=name)
    return value


def shown(value: Any, longest: int = 60) -> str:
    """A value as errors quote it: what the client sent, cut where it is long."""
    if isinstance(value, (Mapping, list)):
        return "an object" if isinstance(value, Mapping) else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = ascii(value) if isinstance(value, str) else f"{value}"
    return text if len(text) <= longest else text[:longest] + "..."
