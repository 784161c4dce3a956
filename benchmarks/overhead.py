"""What wrapping costs in time on the bundled model: prefill and one decode step, stock against wrapped.

All sides share the weights and take turns, prefill by prefill and token by token, so that what else the machine does
falls on all alike. A side's figures are median and quartiles, its difference to stock that of the pairs. "stock again"
is the stock model a second time: what it differs by is noise. CPU time tells more than wall time on a busy machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads must not spin on a shared machine

import torch
from torch import nn

import vtc
from vtc.bundled_files import bundled_data
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.vlm.loading import hardware, load_model, software
from vtc.eval.vlm.prompts import make_row

SIDES = {
    "stock": None,
    "stock again": None,
    "uniform keep=1.0": ("uniform", 1.0),
    "fastv keep=1.0": ("fastv", 1.0),
    "uniform keep=0.25": ("uniform", 0.25),
    "fastv keep=0.25": ("fastv", 0.25),
}
CLOCKS = {"wall": time.perf_counter, "CPU": time.process_time}
Readings = dict[tuple[str, str], dict[str, list[float]]]


def build_sides(model: nn.Module) -> dict[str, nn.Module]:
    """One copy of the model's modules for each side, on the same weights."""
    sides = {}
    for name, setting in SIDES.items():
        side = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
        sides[name] = side if setting is None else vtc.compress(side, setting[0], keep=setting[1])
    return sides


@torch.no_grad()
def measure(sides: dict[str, nn.Module], prompt: dict[str, Any], rounds: int, tokens: int) -> Readings:
    """Seconds ``[phase, clock][side]``; the same place in two sides' lists is a pair."""
    readings: Readings = {(p, c): {s: [] for s in sides} for p in ("prefill", "decode step") for c in CLOCKS}

    def forward(phase: str, side: str, keep: bool, **inputs: Any) -> Any:
        start = {name: clock() for name, clock in CLOCKS.items()}
        out = sides[side](**inputs, use_cache=True, logits_to_keep=1)
        for name, clock in CLOCKS.items():
            if keep:
                readings[phase, name][side].append(clock() - start[name])
        return out

    order = list(sides)
    for turn in range(rounds + 1):  # the first turn warms up
        outputs = {side: forward("prefill", side, turn > 0, **prompt) for side in order}
        for _ in range(tokens):
            order = order[1:] + order[:1]  # nobody always follows the same side
            for side in order:
                out = outputs[side]
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                outputs[side] = forward(
                    "decode step", side, turn > 0, input_ids=token, past_key_values=out.past_key_values
                )
    return readings


def print_table(title: str, found: dict[str, list[float]]) -> dict[str, Any]:
    """Print one phase on one clock, and give the same figures as plain values."""
    print(f"\n{title + ', ms':26}{'median':>9} {'quartiles':>20}  {'minus stock':>12} {'quartiles':>18}")
    base, figures = 1e3 * statistics.median(found["stock"]), {}
    for side, seconds in found.items():
        low, middle, high = (1e3 * x for x in statistics.quantiles(seconds, n=4))
        gaps = [1e3 * (a - b) for a, b in zip(seconds, found["stock"], strict=True)]
        under, gap, over = statistics.quantiles(gaps, n=4)
        spread, gap_spread = f"[{low:.3f}, {high:.3f}]", f"[{under:.3f}, {over:.3f}]"
        print(f"  {side:24}{middle:9.3f} {spread:>20}  {gap:+12.3f} {gap_spread:>18} {gap / base:+7.1%}")
        figures[side] = {"ms": [low, middle, high], "minus_stock_ms": [under, gap, over]}
    return figures


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="prefills of each side")
    parser.add_argument("--tokens", type=int, default=32, help="decode steps behind each prefill")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded, tasks = load_model(device="cpu"), load_tasks(bundled_data())
    question = tasks.questions[0]
    row = make_row(loaded.processor, loaded.model.config, tasks.visuals(question), question)
    prompt = {"input_ids": row.ids[None], **{k: v[None] for k, v in row.tokens.items()}, **row.vision}
    about = {**software(), **hardware(loaded.model), "rounds": options.rounds, "tokens": options.tokens}
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    readings = measure(build_sides(loaded.model), prompt, options.rounds, options.tokens)
    figures = {
        f"{phase}, {clock}": print_table(f"{phase}, {clock}", found) for (phase, clock), found in readings.items()
    }
    about["load after"] = hardware(loaded.model)["load"]
    print(f"\nload after {about['load after']}")
    if options.json:
        options.json.write_text(json.dumps({"about": about, "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
