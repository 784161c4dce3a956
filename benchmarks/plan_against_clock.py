"""``vtc plan --gpu cpu`` beside ``vtc speed``: ``OMP_NUM_THREADS=1 python benchmarks/plan_against_clock.py [MODEL]``.

Both get the configuration of LLaVA-1.5-7B or Qwen2.5-VL-3B, the same picture, methods and keeps. ``vtc speed`` measures
a few layers with random weights, and both reckon for all. Of each setting the ratio predicted over measured is printed,
with a mark where that is more than 25% off. What this CPU attains is measured behind the rounds. FlowCut cuts in half
of the tower's layers, so that it needs all of them: ``--pruners flowcut --tower-layers 24`` (Qwen: 32).

``--measured FILE.json`` reads a run of ``vtc speed --output`` on ``--folder`` instead of measuring.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from true_shape_model import MODELS, write_config

from vtc.eval.cost.timed_prompt import DECODED
from vtc.eval.plan.plan_job import PlanOptions, make_plan
from vtc.eval.plan.show_plan import as_json
from vtc.eval.speed.options import SpeedOptions
from vtc.eval.speed.speed_job import run_speed
from vtc.eval.terminal.option_checks import picture_size
from vtc.eval.vlm.pruning_settings import parse_keep, split_list

NEAR = 0.25  # of the clock: what a prediction may be off
PARTS = ("tower", "prefill", "speed-up", "KV", "token", "selection")
LEAST = 0.03  # of the prefill: choosing that takes less is not compared
# layers of decoder and tower that are measured, and the picture
MEASURED = {"llava": (4, 3, "336x336"), "qwen": (4, 4, "448x336")}
METHODS = "uniform,divprune,cdpruner,fastv,pyramiddrop"


def planned(folder: Path, measured: dict[str, Any]) -> dict[str, Any]:
    """The plan of what was measured."""
    about, rows = measured["about"], measured["rows"][1:]
    tokens, visual = about["prompt"]
    return as_json(
        make_plan(
            PlanOptions(
                str(folder),
                image=about["image"],
                keep=",".join(dict.fromkeys(str(row["keep"]) for row in rows if row["keep"])),
                batch=str(about["batch"]),
                gpu="cpu",
                pruner=",".join(dict.fromkeys(row["method"] for row in rows)),
                text_tokens=tokens - visual,
                answer_tokens=DECODED,
                dtype=about["dtype"],
            )
        )
    )


def figures_of_plan(row: dict[str, Any]) -> dict[str, float]:
    """What a row of the plan says, by part."""
    seconds = row["seconds"]
    return {
        "tower": seconds["tower"] + seconds["projector"],
        "prefill": seconds["prefill"],
        "speed-up": row["speed_up"],
        "KV": row["batch"] * row["kv_bytes"],
        "token": seconds["token"],
        "selection": seconds["selection"],
    }


def figures_of_clock(row: dict[str, Any]) -> dict[str, float]:
    """What a row of ``vtc speed`` says, by part."""
    seconds = row["seconds"]
    return {
        "tower": seconds["tower"],
        "prefill": seconds["prefill"],
        "speed-up": row["attained"]["value"],
        "KV": row["kv_bytes"],
        "token": seconds["decode"],
        "selection": seconds.get("selection", 0.0),
    }


def compare(plan: dict[str, Any], measured: dict[str, Any]) -> int:
    """Print a row for each setting; gives how many ratios are too far off."""
    print(f"{'':28}" + "".join(f"{part:>11}" for part in PARTS))
    off, by_setting = 0, {(row["method"], row["keep"]): row for row in plan["rows"]}
    for row in measured["rows"]:
        key = (None, None) if row["spec"] == "unpruned" else (row["method"], row["keep"])
        mine, clock = figures_of_plan(by_setting[key]), figures_of_clock(row)
        cells = []
        for part in PARTS:
            if part == "selection" and clock[part] < LEAST * clock["prefill"]:
                cells.append("-")
                continue
            ratio = mine[part] / clock[part]
            far = abs(ratio - 1) > NEAR
            off += far
            cells.append(f"{ratio:.2f}" + "!" * far)
        print(f"{row['spec']:28}" + "".join(f"{cell:>11}" for cell in cells), flush=True)
    return off


def main() -> None:
    """Measure, plan, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{', '.join(MODELS)}; default: both")
    parser.add_argument("--pruners", default=METHODS)
    parser.add_argument("--keep", default="0.5,0.25,0.11")
    parser.add_argument("--image", help="default: one that suits the model")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, help="of the decoder that are measured")
    parser.add_argument("--tower-layers", type=int)
    parser.add_argument("--measured", type=Path, help="a file of vtc speed --output, of --folder")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if unknown := [name for name in options.models if name not in MODELS]:
        parser.error(f"unknown: {', '.join(unknown)}")
    torch.set_num_threads(1)
    if options.measured is not None:
        measured = json.loads(options.measured.read_text())
        told(str(options.folder), compare(planned(options.folder, measured), measured))
        return
    for name in options.models or MODELS:
        layers, tower_layers, image = MEASURED[name]
        with tempfile.TemporaryDirectory() as folder:
            write_config(Path(folder), name)
            asked = SpeedOptions(
                model=folder,
                pruners=split_list(options.pruners),
                keeps=[parse_keep(part) for part in split_list(options.keep)],
                image=picture_size(options.image or image),
                batch=options.batch,
                rounds=options.rounds,
                layers=options.layers or layers,
                tower_layers=options.tower_layers or tower_layers,
            )
            measured = run_speed(asked, Console()).content
            plan = planned(Path(folder), measured)
        told(name, compare(plan, measured))


def told(name: str, off: int) -> None:
    """How many ratios are too far off."""
    print(f"{name}: predicted over measured; {off or 'none'} more than {NEAR:.0%} off\n")


if __name__ == "__main__":
    main()
