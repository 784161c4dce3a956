"""Cells of one sweep beside one of them: ``python benchmarks/paired_cells.py DIR 'cdpruner(keep=0.25)' [CELL ...]``.

`DIR` is what ``vtc bench --output`` left. Differences in points, paired by question, with 95% intervals bootstrapped
over images: of the tasks' mean, and of second questions behind a first one. Without cells, all are compared.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vtc.eval.statistics.intervals import Resamples

Scores = dict[str, dict[str, tuple[float, str, str]]]
FILES = {"first": "results*.jsonl", "second": "second*.jsonl"}


def read(folder: Path, pattern: str) -> Scores:
    """Cell -> question -> score, image and task."""
    found: Scores = {}
    for file in sorted(folder.glob(pattern)):
        for line in map(json.loads, file.read_text().splitlines()):
            found.setdefault(line["cell"], {})[line["question_id"]] = (line["score"], line["image_id"], line["task"])
    return found


def row(scores: Scores, cell: str, beside: str) -> str:
    """Accuracy of a cell and its difference to another, over the questions that both have answered."""
    common = sorted({*scores.get(cell, {})} & {*scores.get(beside, {})})
    if not common:
        return " | "
    one, other = ([scores[name][q][0] for q in common] for name in (cell, beside))
    draw = Resamples([scores[cell][q][1] for q in common], [scores[cell][q][2] for q in common])
    gap = draw.interval([a - b for a, b in zip(one, other, strict=True)])
    value, low, high = (100 * end for end in gap)
    return f"{100 * draw.interval(one).value:.1f} ({len(common)}) | {value:+.1f} [{low:+.1f}, {high:+.1f}]"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("beside", help="the cell that the others are compared with")
    parser.add_argument("cells", nargs="*")
    options = parser.parse_args()
    scores = {name: read(options.folder, pattern) for name, pattern in FILES.items()}
    if options.beside not in scores["first"]:
        raise SystemExit(f"{options.folder} has no cell {options.beside!r}; it has {', '.join(scores['first'])}")
    print("| cell | first questions | difference | second questions | difference |\n|---|---|---|---|---|")
    for cell in options.cells or scores["first"]:
        print(f"| `{cell}` | " + " | ".join(row(scores[name], cell, options.beside) for name in FILES) + " |")


if __name__ == "__main__":
    main()
