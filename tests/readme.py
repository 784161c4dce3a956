"""Snippets of the README and of the pages in docs/."""

from __future__ import annotations

import re

from places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}


def snippet(mark: str) -> str:
    """The Python code below a mark, which stands on one page only."""
    pattern = rf"<!-- {re.escape(mark)} -->\n```python\n(.*?)```"
    (found,) = (code for text in (README, *PAGES.values()) for code in re.findall(pattern, text, re.S))
    return found
