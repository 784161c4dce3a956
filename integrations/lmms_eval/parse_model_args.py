"""The text of ``--model_args``, read as lmms-eval reads it, but for parentheses and quotes around a value."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from contextlib import suppress
from typing import Any


def split_arguments(text: str) -> dict[str, str]:
    """Split ``name=value,...`` at the commas outside quotes and brackets; quotes around a whole value are taken off.

    Raises
    ------
    ValueError
        Where a part is no ``name=value``, a name comes twice, or lmms-eval would read the text in another way: it does
        not know parentheses, and keys its cache of responses by what it reads.
    """
    from lmms_eval.utils import simple_parse_args_string

    parts, depth, quote = [""], 0, ""
    for char in text.strip():
        if quote or char in "\"'":
            quote = "" if char == quote else quote or char
        else:
            depth += (char in "([{") - (char in ")]}")
        if char == "," and not quote and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, parts)):
        name, equals, value = (x.strip() for x in part.partition("="))
        if not equals or not name.isidentifier():
            raise ValueError(f"model_args: {part!r} is no name=value")
        if name in found:
            raise ValueError(f"model_args: {name} is given twice")
        found[name] = value
    theirs: Mapping[str, Any] = {}
    with suppress(ValueError):
        theirs = simple_parse_args_string(text)
    if list(theirs) != list(found):
        name = next((n for n, value in found.items() if "(" in value and "," in value), next(iter(found), ""))
        raise ValueError(f'model_args: put the value of {name} in quotes, {name}="{found.get(name, "")}"')
    return {name: v[1:-1] if len(v) > 1 and v[0] == v[-1] and v[0] in "\"'" else v for name, v in found.items()}


def read_value(text: str) -> Any:
    """A method's parameter: a literal, true or false, or a bare word."""
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
