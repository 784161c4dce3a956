"""Writes docs/all-methods.md from a sweep: ``python benchmarks/all_methods.py DIR``.

``DIR`` is the output of ``vtc bench --pruners all --keep 0.25,0.11,0.05 --no-timing --limit 40 --output DIR``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from readme_table import points

from vtc.eval.reports.method_list import describe
from vtc.eval.statistics.cell_summary import keep_text

TARGET = Path(__file__).resolve().parent.parent / "docs" / "all-methods.md"
COLUMNS = (
    "method", "stage", "visual tokens (mean per layer)", "accuracy", "against unpruned", "against random", "verdict",
)  # fmt: skip
HEAD = "| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|"
TEXT = """# Every method on the bundled model

Measured by `{command}`:
{questions} questions in {tasks} tasks, the same for every row; accuracy is the mean of the tasks in percent;
differences are in points, paired per question, with 95% intervals bootstrapped over images (and over seeds, where there
are several). {versions}; {hardware}. Written by `benchmarks/all_methods.py`.

Unpruned: {unpruned:.1f}. `random` is the mean of {seeds} seeds. Each method is compared with random at the same
*measured* budget, visual tokens per decoder layer, so methods that prune inside the decoder meet a random cell that
keeps more at the input. A verdict stands where both the interval and an exact test, after Holm's correction over the
whole sweep, agree. What this small model can tell about a method and what not stands in the
[bundled-model.md](bundled-model.md). This is not what the methods do on the
models they were made for: for those there are recipes (`vtc recipes`).
"""


def line(cell: dict[str, Any], stages: dict[str, str]) -> str:
    """A method's row."""
    kept, mean = round(cell["tokens_kept"]), round(cell["tokens_per_layer"])
    values = (
        f"`{cell['method']}`", stages.get(cell["method"], "decoder"), f"{kept}" if kept == mean else f"{kept} ({mean})",
        f"{100 * cell['mean']['value']:.1f}", points(cell["difference"], cell["flips"] == 0),
        points(cell["against_random"]),
        cell["verdict"],
    )  # fmt: skip
    return "| " + " | ".join(values) + " |"


def main() -> None:
    """Read the sweep, write the page."""
    about = json.loads((Path(sys.argv[1]) / "summary.json").read_text())
    stages = {row["name"]: ", ".join(row["stages"]) for row in describe()}
    pruned = [cell for cell in about["cells"] if cell["difference"] is not None]
    unpruned = next(cell for cell in about["cells"] if cell["difference"] is None)
    methods = [cell for cell in pruned if not cell["method"].startswith("random")]
    page = TEXT.format(
        command=f"vtc bench --pruners all --keep 0.25,0.11,0.05 --no-timing --limit {about['data']['limit']}",
        questions=sum(about["data"]["questions"].values()), tasks=len(about["data"]["questions"]),
        versions=", ".join(f"{name} {about['versions'][name]}" for name in ("vtc", "torch", "transformers")),
        hardware=f"{about['hardware']['cpus']} cores of {about['hardware']['cpu']}",
        unpruned=100 * unpruned["mean"]["value"], seeds=about["seeds"],
    )  # fmt: skip
    keeps = sorted({cell["keep"] for cell in methods if cell["keep"] is not None}, reverse=True)
    for keep in keeps:
        same = sorted((c for c in pruned if c["keep"] == keep), key=lambda c: -c["mean"]["value"])
        page += f"\n## {keep_text(keep)} kept\n\n" + "\n".join([HEAD, *(line(cell, stages) for cell in same)]) + "\n"
    further = [c for c in pruned if c not in methods and c["keep"] not in keeps]
    further.sort(key=lambda c: -c["keep"])
    page += "\n## Random at the other budgets\n\n| keep | accuracy | against unpruned |\n|---|---|---|\n"
    page += "".join(
        f"| {keep_text(c['keep'])} | {100 * c['mean']['value']:.1f} | {points(c['difference'], c['flips'] == 0)} |\n"
        for c in further
    )
    for name, reason in about.get("left_out", {}).items():
        page += f"\nLeft out: `{name}`: {reason}\n"
    TARGET.write_text(page)


if __name__ == "__main__":
    main()
