"""Puts the table of ``vtc bench --output DIR`` into docs and README: ``python benchmarks/readme_table.py DIR``."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from vtc.eval.reports.wording import numbers_in_words as words
from vtc.eval.statistics.cell_summary import keep_text
from vtc.eval.statistics.intervals import Interval

README = Path(__file__).resolve().parent.parent / "README.md"
PAGE = README.parent / "docs" / "bundled-results.md"
PICTURE = README.parent / "docs" / "pareto.png"
FEW, FEW_KEEP = ("random", "downsample", "pool", "random(layer=2)", "dart"), 0.11  # rows on the front page
HEAD = (
    "| method | keep | visual tokens (mean per layer) | accuracy | against unpruned, points [95%] "
    "| against random at equal tokens per layer | prefill time | FLOPs | KV memory |\n" + "|---" * 9 + "|"
)


def points(gap: dict[str, float] | None, same: bool = False) -> str:
    """A difference with its interval, in points; see ``words.ends`` for `same`."""
    if gap is None:
        return ""
    found = Interval(gap["value"], gap["low"], gap["high"])
    return f"{100 * found.value:+.1f} {words.ends(found, same)}".replace("−", "-")


def row(cell: dict[str, Any]) -> str:
    """One line of the table."""
    keep = "100%" if cell["keep"] is None else keep_text(cell["keep"])
    kept, mean = round(cell["tokens_kept"]), round(cell["tokens_per_layer"])
    tokens = f"{kept}" if kept == mean else f"{kept} ({mean})"
    accuracy, against = f"{100 * cell['mean']['value']:.1f}", points(cell["difference"], cell["flips"] == 0)
    beside = f"{points(cell['against_random'])}: {cell['verdict']}" if cell["against_random"] else cell["verdict"]
    plain = cell["difference"] is None
    ratios = [1, 1, 1] if plain else [cell["time"]["lm_ratio"], cell["flops_ratio"], cell["kv_ratio"]]
    figures = " | ".join("1" if r == 1 else f"{r:.2f}" for r in ratios)
    return f"| {cell['method']} | {keep} | {tokens} | {accuracy} | {against} | {beside} | {figures} |"


def put(page: Path, mark: str, table: str) -> None:
    """Replace what stands between a page's markers."""
    pattern = rf"(?s)(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
    new, count = re.subn(pattern, lambda m: f"{m[1]}{table}\n\n{m[2]}", page.read_text())
    if count != 1:
        raise SystemExit(f"{page} has no single <!-- {mark} --> ... <!-- /{mark} --> block")
    page.write_text(new)


def main() -> None:
    """Put the table and its picture, which shows the same FLOPs, into docs/, and a few of its rows into the README."""
    folder = Path(sys.argv[1])
    cells = json.loads((folder / "summary.json").read_text())["cells"]
    put(PAGE, "table", "\n".join([HEAD, *map(row, cells)]))
    few = [cell for cell in cells if cell["keep"] is None or (cell["method"] in FEW and cell["keep"] == FEW_KEEP)]
    put(README, "few", "\n".join([HEAD, *map(row, few)]))
    shutil.copyfile(folder / "pareto.png", PICTURE)


if __name__ == "__main__":
    main()
