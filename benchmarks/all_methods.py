"""Writes docs/all-methods.md from a sweep: ``python benchmarks/all_methods.py DIR``.

``DIR`` is the output of ``vtc bench --pruners all --keep 0.25,0.11,0.05 --no-timing --output DIR``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vtc.eval.bundled import bundled_data
from vtc.eval.listing import describe
from vtc.eval.stats import Interval, paired_difference
from vtc.eval.store import read_all
from vtc.eval.tasks import load_tasks

TARGET = Path(__file__).resolve().parent.parent / "docs" / "all-methods.md"
HEAD = (
    "| method | stage | visual tokens (mean per layer) | accuracy | against unpruned | against random | |\n"
    + "|---" * 7
    + "|"
)
TEXT = """# Every method on the bundled model

Measured by `{command}`:
{questions} questions in {tasks} tasks, the same for every row; accuracy is the mean of the tasks in percent;
differences are in points, paired per question, with 95% intervals bootstrapped over images.
{versions}; {hardware}. Written by `benchmarks/all_methods.py`.

Unpruned: {unpruned:.1f}. `random` is one seed. What this small model can tell about a method and what not stands in the
[README](../README.md#what-the-bundled-model-can-tell-about-them-and-what-not): methods that prune inside the decoder
can hardly lose here, and keep more tokens per layer on average, so "better than random" at the same `keep` means little
for them. Nor is this what the methods do on the models they were made for: for those there are recipes (`vtc recipes`).
"""


def points(gap: Interval) -> str:
    """A difference with its interval, in points."""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in gap))


def verdict(gap: Interval) -> str:
    """What the interval says."""
    return "better than random" if gap.low > 0 else "worse than random" if gap.high < 0 else "no evidence"


def section(cells: list[dict[str, Any]], scores: dict[str, dict[str, float]], stages: dict[str, str]) -> list[str]:
    """The table of one keep, best first."""
    tasks = load_tasks(bundled_data())
    image = {q.question_id: q.image_id for q in tasks.questions}
    task = {q.question_id: q.task for q in tasks.questions}
    random = next(scores[c["spec"]] for c in cells if c["method"] == "random")
    lines = [HEAD]
    for cell in sorted(cells, key=lambda c: -c["mean"]["value"]):
        against = said = ""
        if cell["method"] != "random":
            gap = paired_difference(scores[cell["spec"]], random, image, task)
            against, said = points(gap), verdict(gap)
        kept, mean = round(cell["tokens_kept"]), round(cell["tokens_per_layer"])
        tokens = f"{kept}" if kept == mean else f"{kept} ({mean})"
        gap = Interval(**cell["difference"])
        accuracy = f"{100 * cell['mean']['value']:.1f}"
        name = f"`{cell['method']}`"
        lines.append(
            f"| {name} | {stages[cell['method']]} | {tokens} | {accuracy} | {points(gap)} | {against} | {said} |"
        )
    return lines


def main() -> None:
    """Read the sweep, write the page."""
    folder = Path(sys.argv[1])
    about = json.loads((folder / "summary.json").read_text())
    scores: dict[str, dict[str, float]] = {}
    for row in read_all(folder / "results.jsonl"):
        scores.setdefault(row["cell"], {})[row["question_id"]] = row["score"]
    stages = {row["name"]: ", ".join(row["stages"]) for row in describe()}
    cells = [cell for cell in about["cells"] if cell["difference"] is not None]
    unpruned = next(cell for cell in about["cells"] if cell["difference"] is None)
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("vtc", "torch", "transformers"))
    hardware = f"{about['hardware']['cpus']} cores of {about['hardware']['cpu']}"
    page = TEXT.format(
        command="vtc bench --pruners all --keep 0.25,0.11,0.05 --no-timing --limit " + str(about["data"]["limit"]),
        questions=sum(about["data"]["questions"].values()),
        tasks=len(about["data"]["questions"]),
        versions=versions,
        hardware=hardware,
        unpruned=100 * unpruned["mean"]["value"],
    )
    for keep in dict.fromkeys(cell["keep"] for cell in cells if cell["keep"] is not None):
        same = [cell for cell in cells if cell["keep"] == keep]
        page += f"\n## {keep:.0%} kept\n\n" + "\n".join(section(same, scores, stages)) + "\n"
    for name, reason in about.get("left_out", {}).items():
        page += f"\nLeft out: `{name}`: {reason}\n"
    TARGET.write_text(page)


if __name__ == "__main__":
    main()
