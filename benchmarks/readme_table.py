"""Puts the table of ``vtc bench --output DIR`` into the README: ``python benchmarks/readme_table.py DIR``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent.parent / "README.md"
HEAD = (
    "| method | keep | visual tokens (mean per layer) | accuracy | against unpruned, points [95%] | prefill time "
    "| FLOPs | KV memory |\n|---|---|---|---|---|---|---|---|"
)


def row(cell: dict[str, Any]) -> str:
    """One line of the table."""
    keep = "100%" if cell["keep"] is None else f"{cell['keep']:.0%}" if cell["keep"] <= 1 else str(cell["keep"])
    kept, mean = round(cell["tokens_kept"]), round(cell["tokens_per_layer"])
    tokens = f"{kept}" if kept == mean else f"{kept} ({mean})"
    gap = cell["difference"]
    against = (
        ""
        if gap is None
        else "{value:+.1f} [{low:+.1f}, {high:+.1f}]".format(**{k: 100 * gap[k] for k in ("value", "low", "high")})
    )
    ratios = [1, 1, 1] if gap is None else [cell["time"]["lm_ratio"], cell["flops_ratio"], cell["kv_ratio"]]
    figures = " | ".join("1" if r == 1 else f"{r:.2f}" for r in ratios)
    return f"| {cell['method']} | {keep} | {tokens} | {100 * cell['mean']['value']:.1f} | {against} | {figures} |"


def main() -> None:
    """Replace what stands between the README's table markers."""
    cells = json.loads((Path(sys.argv[1]) / "summary.json").read_text())["cells"]
    table = "\n".join([HEAD, *map(row, cells)])
    text = README.read_text()
    new, count = re.subn(r"(?s)(<!-- table -->\n).*?(\n\n<!-- /table -->)", lambda m: m[1] + table + m[2], text)
    if count != 1:
        raise SystemExit(f"{README} has no single <!-- table --> ... <!-- /table --> block")
    README.write_text(new)


if __name__ == "__main__":
    main()
