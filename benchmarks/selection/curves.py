"""Curves of choosing and of what pruning gains over visual tokens and batch: measured once, drawn from a file.

    OMP_NUM_THREADS=1 python benchmarks/selection/curves.py tokens     # time of choosing: methods over N
    OMP_NUM_THREADS=1 python benchmarks/selection/curves.py batches    # time of choosing: primitives in batches
    OMP_NUM_THREADS=1 python benchmarks/selection/curves.py gain       # ``vtc plan`` of Qwen2.5-VL-3B's shape
    python benchmarks/selection/curves.py draw                         # docs/choosing.png, and docs/gain.png of a gain

Choosing over N is measured as every_method.py does, one turn behind one that is not counted; a size that by the square
of N would take longer than ``--longest`` seconds is left out. In batches it is the primitives (cases.py) at 576 tokens
of width 1,024. The gain is no measurement: it is what ``vtc plan`` reckons for an H100. All but the last write
curves.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from cases import Shape, read_cases
from every_method import measure
from measuring import exponent, in_turns

from vtc.eval.stability.made_up_spans import picture

HERE = Path(__file__).parent
FILE, DOCS = HERE / "curves.json", HERE.parents[1] / "docs"
TOKENS = (144, 576, 2880, 5760, 20250)  # the last three are a thumbnail and crops
BATCHES = (1, 2, 8, 32)
METHODS = (
    "fastv", "pyramiddrop", "hired", "visionzip", "flowcut", "cdpruner", "dart", "idpruner", "holov", "divprune",
    "prumerge", "tome", "vispruner", "todre", "zero_tprune",
)  # fmt: skip
IN_BATCHES = ("mmr", "dpp", "max_min", "weighted_max_min", "holov")
SIDES = (336, 672, 1008, 1512, 2016, 2800, 3920)  # of the picture: 144 to 19,600 tokens
KEEP = 0.11


def choosing_over_tokens(longest: float) -> dict[str, list[list[float]]]:
    """Of each method pairs of N and seconds."""
    found: dict[str, list[list[float]]] = {}
    for name in METHODS:
        points: list[list[float]] = []
        for n in TOKENS:
            if points and points[-1][1] * (n / points[-1][0]) ** 2 > longest:
                break
            points.append([n, measure(name, picture(n), KEEP, 1, torch.float32)["seconds"]])
            print(f"{name:<14} {n:>6} {points[-1][1] * 1e3:10.1f} ms", flush=True)
        found[name] = points
    return found


@torch.no_grad()
def choosing_in_batches() -> dict[str, list[list[float]]]:
    """Of each primitive pairs of the batch and seconds."""
    cases, found = read_cases(), {}
    for name in IN_BATCHES:
        points = []
        for batch in BATCHES:
            shape = Shape(576, 1024, batch, keep=KEEP)
            inputs = cases[name].make(shape)
            [[seconds]] = in_turns([lambda case=cases[name], i=inputs, s=shape: case.ours(i, s)], 1)
            points.append([batch, seconds])
            print(f"{name:<18} batch {batch:>3} {seconds * 1e3:10.1f} ms", flush=True)
        found[name] = points
    return found


def gain() -> dict[str, Any]:
    """Speed-ups by ``vtc plan`` at 11% kept, of a method whose choice costs nothing, over N and over the batch."""
    sys.path.insert(0, str(HERE.parent))
    from true_shape_model import write_config

    from vtc.eval.plan.plan_job import PlanOptions, make_plan

    found: dict[str, Any] = {"tokens": [], "batches": {}}
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), "qwen")
        for side in SIDES:
            batch = ",".join(map(str, BATCHES)) if side == 672 else "1"
            plan = make_plan(PlanOptions(folder, image=f"{side}x{side}", keep=str(KEEP), batch=batch))
            cells = {cell.batch: cell for cell in plan.cells}
            plain = cells[1].plain
            share = (plain.tower + plain.projector) / plain.prefill
            found["tokens"].append([plan.picture.tokens, cells[1].speed_up, 1 / share])
            if len(cells) > 1:
                found["batches"] = [[b, cell.speed_up] for b, cell in cells.items()]
            print(side, found["tokens"][-1], flush=True)
    return found


def draw(data: dict[str, Any]) -> None:
    """Both pictures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, curves, what in ((left, data["over_tokens"], "visual tokens"), (right, data["in_batches"], "batch")):
        for i, (name, points) in enumerate(curves.items()):
            x, y = zip(*points, strict=True)
            label = f"{name} ({exponent(x[-3:], y[-3:]):.1f})" if len(x) > 1 else name
            axes.loglog(x, [1e3 * s for s in y], marker="os^v"[i // 10 + i % 2], color=f"C{i % 10}", ms=4, label=label)
        axes.set(xlabel=what, ylabel="ms of choosing, one CPU thread")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=7)
    left.set_title("methods, 11% kept (slope of the last three)", fontsize=10)
    right.set_title("primitives, 576 tokens a picture", fontsize=10)
    figure.savefig(DOCS / "choosing.png", dpi=110)
    if "gain" in data:
        draw_gain(data["gain"])


def draw_gain(data: dict[str, Any]) -> None:
    """Speed-up over tokens beside its bound, and over the batch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    n, speed_up, bound = zip(*data["tokens"], strict=True)
    left.semilogx(n, bound, "--", color="C7", label="decoder for nothing")
    left.semilogx(n, speed_up, marker="o", label="11% kept")
    left.set(xlabel="visual tokens, batch 1", ylabel="speed-up of the prefill")
    left.legend(fontsize=8)
    batches, gains = zip(*data["batches"], strict=True)
    right.semilogx(batches, gains, marker="o")
    right.set(xlabel="batch, 576 tokens a picture")
    right.set_xticks(batches, [str(b) for b in batches], minor=False)
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
    figure.suptitle("reckoned by vtc plan: Qwen2.5-VL-3B's shape, H100", fontsize=10)
    figure.savefig(DOCS / "gain.png", dpi=110)


def main() -> None:
    """Measure or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tokens", "batches", "gain", "draw"))
    parser.add_argument("--longest", type=float, default=5, help="seconds that one choice may take")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    if options.what == "tokens":
        data["over_tokens"] = choosing_over_tokens(options.longest)
    elif options.what == "batches":
        data["in_batches"] = choosing_in_batches()
    elif options.what == "gain":
        data["gain"] = gain()
    else:
        draw(data)
        return
    FILE.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
