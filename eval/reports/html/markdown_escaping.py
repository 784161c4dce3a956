"""Text that is no markup: in tables and blocks of Markdown, and in narrow columns of HTML (which jinja2 escapes)."""

from __future__ import annotations

import re
from typing import Any


def breaks(text: object) -> Any:
    """A method's text that may be broken after its signs."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[+,(=_-])", str(text)))


def cell(text: object) -> str:
    """Text for a Markdown table: one line, nothing of it markup."""
    plain = " ".join(str(text).split())
    for char in "\\`*_{}[]<>|":
        plain = plain.replace(char, "\\" + char)
    return plain


def fence(text: object) -> str:
    """Text inside a fenced block, which it can't close."""
    return "\n".join("    " + line for line in str(text).splitlines() or [""])
