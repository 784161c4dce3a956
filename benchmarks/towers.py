"""What pruning inside a tower gains on the clock: ``python benchmarks/towers.py flowcut zero_tprune``.

The whole tower of Qwen2.5-VL-3B or LLaVA-1.5 (``--model``) with random weights, stock and under each method at
``--keep``, on ``--pictures`` of ``--size``. All sides share the weights and go layer by layer in turns, each in a
thread of its own, whose CPU time is read: what else the machine does falls on all alike. Of every layer the rows left
of each side and the speed-up so far are printed; the last line of a turn is the tower's with projector.

Attention of random weights is flat, and FlowCut cuts little where it is. ``--sharper`` multiplies queries and keys.
"""

from __future__ import annotations

import argparse
import copy
import os
import threading
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads must not spin on a shared machine

import torch
import transformers as tf
from torch import nn
from true_shape_model import MODELS, PATCH, WORDS

import vtc
from vtc.models.layout.model_parts import locate
from vtc.models.tower.refusals import vision_layers


def build(name: str, layers: int, sharper: float) -> nn.Module:
    """The model with one layer of the language model, which nobody runs."""
    config, _ = MODELS[name][0](1, layers, WORDS)
    torch.manual_seed(0)
    model = tf.AutoModelForImageTextToText.from_config(config).eval()
    for module in locate(model).tower.modules():
        for part in ("qkv", "q_proj", "k_proj"):
            linear = getattr(module, part, None)
            if linear is not None:
                rows = linear.out_features * 2 // 3 if part == "qkv" else linear.out_features
                linear.weight.data[:rows] *= sharper
    return model


def pixels(name: str, pictures: int, width: int, height: int) -> dict[str, torch.Tensor]:
    """Noise in place of pictures, as the processor would give it."""
    made = torch.Generator().manual_seed(1)
    if name == "llava":
        return {"pixel_values": torch.randn(pictures, 3, 336, 336, generator=made)}
    rows, cols = (2 * round(side / (2 * PATCH)) for side in (height, width))
    values = torch.randn(pictures * rows * cols, 3 * 2 * PATCH**2, generator=made)
    return {"pixel_values": values, "image_grid_thw": torch.tensor([[1, rows, cols]] * pictures)}


class Side:
    """One model that runs its tower a layer at a time, when it is its turn."""

    def __init__(self, model: Any, turns: Turns):
        self.model, self.turns = model, turns
        self.ends: list[tuple[float, int]] = []
        for layer in vision_layers(locate(model).tower):
            layer.register_forward_hook(self._leave)

    def _leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        self.ends.append((time.thread_time(), states.shape[:-1].numel()))
        self.turns.next(self)

    @torch.no_grad()
    def run(self, inputs: dict[str, torch.Tensor]) -> None:
        """The tower and the projector."""
        self.ends = []
        self.turns.wait(self)
        self.start = time.thread_time()
        self.model.get_image_features(**inputs)
        self.total = time.thread_time() - self.start
        self.turns.leave(self)


class Turns:
    """Which side's turn it is."""

    def __init__(self) -> None:
        self.sides: list[Side] = []
        self._changed = threading.Condition()

    def wait(self, side: Side) -> None:
        """Until it is this side's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self.sides[0] is side)

    def next(self, side: Side) -> None:
        """Let the other sides run a layer, and wait."""
        with self._changed:
            self.sides.append(self.sides.pop(0))
            self._changed.notify_all()
        self.wait(side)

    def leave(self, side: Side) -> None:
        """This side is done."""
        with self._changed:
            self.sides.remove(side)
            self._changed.notify_all()


def measure(sides: list[Side], inputs: dict[str, torch.Tensor], turns: Turns) -> list[float]:
    """Speed-ups over the first side, of one turn."""
    turns.sides = list(sides)
    threads = [threading.Thread(target=side.run, args=(inputs,)) for side in sides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, ends in enumerate(zip(*(side.ends for side in sides), strict=True)):
        spent = [end - side.start for side, (end, _) in zip(sides, ends, strict=True)]
        told = (f"{n} rows {spent[0] / s:.3f}x" for (_, n), s in zip(ends[1:], spent[1:], strict=True))
        print(f"layer {i}: {ends[0][1]} rows", *told, sep=" | ")
    return [sides[0].total / side.total for side in sides]


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", help="as vtc.parse reads them, e.g. \"tome(at='vision')\"")
    parser.add_argument("--model", choices=MODELS, default="qwen")
    parser.add_argument("--layers", type=int, help="of the tower; all by default")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--size", default="1280x960", help="of a picture (Qwen)")
    parser.add_argument("--sharper", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    inputs = pixels(options.model, options.pictures, *map(int, options.size.split("x")))
    stock = build(options.model, options.layers or MODELS[options.model][1][1], options.sharper)
    copies = [copy.deepcopy(stock, {id(p): p for p in stock.parameters()}) for _ in options.methods]
    pruned = [vtc.compress(m, s, keep=options.keep) for m, s in zip(copies, options.methods, strict=True)]
    turns = Turns()
    sides = [Side(model, turns) for model in (stock, *pruned)]
    for turn in range(options.turns + 1):
        found = measure(sides, inputs if turn else pixels(options.model, 1, 112, 112), turns)
        if turn:  # the first, on a small picture, warms up
            print(f"turn {turn}:", *(f"{s} {x:.3f}x" for s, x in zip(options.methods, found[1:], strict=True)))


if __name__ == "__main__":
    main()
