"""What wrapping costs in time on the bundled model: prefill and one decode step, stock against wrapped.

All sides share the weights and take turns, prefill by prefill and token by token, so that what else the machine does
falls on all alike. A side's figures are median and quartiles; beside stock stands the median of the pairs' ratios with
its 95% interval. "stock again" is the stock model a second time: what it differs by is noise. "of as many" is the stock
model on the tokens that ``keep=0.25`` leaves, to compare pruned decoding with. CPU time tells more than wall time on a
busy machine. ``--thin`` takes 32 layers of width 256 with random weights in place of the bundled model.
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

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import nn
from transformers import AutoModelForImageTextToText

import vtc
from vtc.bundled_files import bundled_data
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.vlm.loading import hardware, load_model, software
from vtc.eval.vlm.prompts import make_row

AS_MANY, OF_AS_MANY = "uniform keep=0.25", "stock of as many"
SIDES = {
    "stock": None,
    "stock again": None,
    "uniform keep=1.0": ("uniform", 1.0),
    "fastv keep=1.0": ("fastv", 1.0),
    AS_MANY: ("uniform", 0.25),
    "fastv keep=0.25": ("fastv", 0.25),
    OF_AS_MANY: None,
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
def measure(sides: dict[str, nn.Module], prompts: dict[str, dict[str, Any]], rounds: int, tokens: int) -> Readings:
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
        order = order[1:] + order[:1]  # nobody always follows the same side
        outputs = {side: forward("prefill", side, turn > 0, **prompts[side]) for side in order}
        for _ in range(tokens):
            order = order[1:] + order[:1]
            for side in order:
                out = outputs[side]
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                outputs[side] = forward(
                    "decode step", side, turn > 0, input_ids=token, past_key_values=out.past_key_values
                )
    return readings


def print_table(title: str, found: dict[str, list[float]]) -> dict[str, Any]:
    """Print one phase on one clock, and give the same figures as plain values."""
    print(f"\n{title + ', ms':26}{'median':>9} {'quartiles':>20}  {'over':16} {'ratio, 95%':>22}")
    figures = {}
    for side, seconds in found.items():
        low, middle, high = (1e3 * x for x in statistics.quantiles(seconds, n=4))
        over = OF_AS_MANY if side == AS_MANY else "stock"
        ratios = np.array(seconds) / np.array(found[over])
        ratio = float(np.median(ratios))
        least, most = bootstrap((ratios,), np.median, n_resamples=999, method="percentile", rng=0).confidence_interval
        spread, interval = f"[{low:.3f}, {high:.3f}]", f"{ratio:.4f} [{least:.4f}, {most:.4f}]"
        print(f"  {side:24}{middle:9.3f} {spread:>20}  {over:16} {interval:>22}")
        figures[side] = {"ms": [low, middle, high], "over": over, "ratio": [float(least), ratio, float(most)]}
    return figures


def thin(model: nn.Module) -> nn.Module:
    """A model like `model`, but of 32 layers of width 256, with random weights."""
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    text.num_hidden_layers, text.hidden_size, text.intermediate_size = 32, 256, 512
    text.num_attention_heads = text.num_key_value_heads = 8
    torch.manual_seed(0)
    made: nn.Module = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    return made.eval()


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="prefills of each side")
    parser.add_argument("--tokens", type=int, default=32, help="decode steps behind each prefill")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--thin", action="store_true", help="32 layers of width 256 with random weights")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded, tasks = load_model(device="cpu"), load_tasks(bundled_data())
    model = thin(loaded.model) if options.thin else loaded.model
    question = tasks.questions[0]
    row = make_row(loaded.processor, model.config, tasks.visuals(question), question)
    prompt = {"input_ids": row.ids[None], **{k: v[None] for k, v in row.tokens.items()}, **row.vision}
    text = row.ids[row.ids != model.config.image_token_id]
    left = len(text) + (len(row.ids) - len(text)) // 4
    prompts = dict.fromkeys(SIDES, prompt) | {OF_AS_MANY: {"input_ids": text.repeat(left)[None, :left]}}
    about = {**software(), **hardware(model), "rounds": options.rounds, "tokens": options.tokens}
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    readings = measure(build_sides(model), prompts, options.rounds, options.tokens)
    figures = {
        f"{phase}, {clock}": print_table(f"{phase}, {clock}", found) for (phase, clock), found in readings.items()
    }
    about["load after"] = hardware(model)["load"]
    print(f"\nload after {about['load after']}")
    if options.json:
        options.json.write_text(json.dumps({"about": about, "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
