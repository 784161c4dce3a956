"""Puts the table of methods into the README: ``python benchmarks/methods_table.py``."""

from __future__ import annotations

import re
from pathlib import Path

from vtc.eval.listing import describe, readme_table

README = Path(__file__).resolve().parent.parent / "README.md"


def main() -> None:
    """Replace what stands between the README's markers."""
    block, text = r"(?s)(<!-- methods -->\n).*?(\n\n<!-- /methods -->)", README.read_text()
    new, count = re.subn(block, lambda m: m[1] + readme_table(describe()) + m[2], text)
    if count != 1:
        raise SystemExit(f"{README} has no single <!-- methods --> ... <!-- /methods --> block")
    README.write_text(new)


if __name__ == "__main__":
    main()
