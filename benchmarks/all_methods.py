"""Writes docs/all-methods.md from a sweep: ``python benchmarks/all_methods.py DIR``; of two, docs/all-methods-real.md.

``DIR`` is what ``vtc bench --pruners all --keep 0.25,0.11,0.05 --no-timing --limit 40 --second 0 --output DIR`` left.
With ``DIR DIR_REAL``, the same questions to the bundled model and to bundled-real, the other page is written, and says
which verdicts are others.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from readme_table import points
from scipy.stats import spearmanr

from vtc.eval.reports.method_list import describe
from vtc.eval.statistics.cell_summary import keep_text

DOCS = Path(__file__).resolve().parent.parent / "docs"
COLUMNS = (
    "method", "stage", "visual tokens (mean per layer)", "accuracy", "against unpruned", "against random", "verdict",
)  # fmt: skip
REAL = "bundled-real"
HEAD = "| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|"
TEXT = """# Every method on {model}

Measured by `{command}`:
{questions} questions in {tasks} tasks, the same for every row; accuracy is the mean of the tasks in percent;
differences are in points, paired per question, with 95% intervals bootstrapped over images (and over seeds, where there
are several). {versions}; {hardware}. Written by `benchmarks/all_methods.py`.

Unpruned: {unpruned:.1f}. `random` is the mean of {seeds} seeds. Each method is compared with random at the same
*measured* budget, visual tokens per decoder layer, so methods that prune inside the decoder meet a random cell that
keeps more at the input. A verdict stands where both the interval and an exact test, after Holm's correction over the
whole sweep, agree. What this small model can tell about a method and what not stands in
[{about}]({about}). This is not what the methods do on the
models they were made for: for those there are recipes (`vtc recipes`).
"""
SHIFT = 0.1
CHANGED = """
## Beside the bundled model

Asked the same questions: methods whose verdict is another one there, or whose difference to random is {shift:.0f}
points or more away from that there, and at each keep Spearman's correlation of all methods' differences to random on
the two models.

| keep | method | against random there | against random here |
|---|---|---|---|
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


def page_of(about: dict[str, Any]) -> str:
    """All rows of one sweep."""
    stages = {row["name"]: ", ".join(row["stages"]) for row in describe()} | {"downsample": "smaller pictures"}
    pruned = [cell for cell in about["cells"] if cell["difference"] is not None]
    unpruned = next(cell for cell in about["cells"] if cell["difference"] is None)
    methods = [cell for cell in pruned if not cell["method"].startswith("random")]
    real = about["model"] == REAL
    page = TEXT.format(
        model="bundled-real" if real else "the bundled model",
        about="real-model.md" if real else "bundled-model.md",
        command=re.sub(r" --(output|workers) \S+", "", about["command"]),
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
    return page


def verdicts(about: dict[str, Any]) -> dict[tuple[float, str], dict[str, Any]]:
    """Keep and method -> its cell, where it is compared with random."""
    return {
        (cell["keep"], cell["method"]): cell
        for cell in about["cells"]
        if cell["against_random"] and not cell["method"].startswith("random")
    }


def changes(there: dict[str, Any], here: dict[str, Any]) -> str:
    """What the second sweep says otherwise."""
    one, two = verdicts(there), verdicts(here)
    both = sorted({*one} & {*two}, key=lambda cell: (-cell[0], cell[1]))
    gap = [[of[cell]["against_random"]["value"] for cell in both] for of in (one, two)]
    text = CHANGED.format(shift=100 * SHIFT)
    for cell, first, second in zip(both, *gap, strict=True):
        said = [of[cell]["verdict"].split(",")[0].removesuffix(" after correction") for of in (one, two)]
        if said[0] != said[1] or abs(first - second) >= SHIFT:
            told = (f"{points(of[cell]['against_random'])}: {word}" for of, word in zip((one, two), said, strict=True))
            text += f"| {keep_text(cell[0])} | `{cell[1]}` | {' | '.join(told)} |\n"
    for keep in dict.fromkeys(keep for keep, _ in both):
        pairs = [pair for cell, *pair in zip(both, *gap, strict=True) if cell[0] == keep]
        text += (
            f"\n{keep_text(keep)}: {spearmanr(*zip(*pairs, strict=True)).statistic:+.2f} over {len(pairs)} methods.\n"
        )
    return text


def main() -> None:
    """Read the sweeps, write the page."""
    sweeps = [json.loads((Path(folder) / "summary.json").read_text()) for folder in sys.argv[1:]]
    if len(sweeps) == 1:
        (DOCS / "all-methods.md").write_text(page_of(sweeps[0]))
    else:
        (DOCS / "all-methods-real.md").write_text(page_of(sweeps[1]) + changes(*sweeps))


if __name__ == "__main__":
    main()
