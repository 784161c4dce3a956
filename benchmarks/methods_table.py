"""Puts the table of methods into docs/methods.md: ``python benchmarks/methods_table.py``."""

from __future__ import annotations

import re
from pathlib import Path

from vtc.eval.reports.method_list import describe, methods_table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"


def main() -> None:
    """Replace what stands between the page's markers."""
    block, text = r"(?s)(<!-- methods -->\n).*?(\n\n<!-- /methods -->)", PAGE.read_text()
    new, count = re.subn(block, lambda m: m[1] + methods_table(describe()) + m[2], text)
    if count != 1:
        raise SystemExit(f"{PAGE} has no single <!-- methods --> ... <!-- /methods --> block")
    PAGE.write_text(new)


if __name__ == "__main__":
    main()
