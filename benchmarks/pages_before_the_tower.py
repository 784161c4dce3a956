"""What PixelPrune saves of a packed tower on pages: CPU time of Qwen2.5-VL's tower at true width, stock against pruned.

The pages are drawn here: lines of words, a table, a white margin; a noisy one has what a scanner adds. Weights are
random and do not matter: nothing is chosen by them. Both sides take turns; the figure is the median of the pairs'
ratios, with their range.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads must not spin on a shared machine

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

import vtc

WORDS = ("the", "invoice", "of", "last", "month", "is", "paid", "in", "full", "and", "no", "further", "charge", "goods")


def page(size: tuple[int, int], seed: int, noise: int = 0) -> Image.Image:
    """A page of text with a table below; `noise` is the most that a pixel is off."""
    r, found = np.random.default_rng(seed), Image.new("RGB", size, "white")
    draw, (width, height) = ImageDraw.Draw(found), size
    for y in range(height // 12, height * 6 // 10, 28):
        text = " ".join(r.choice(WORDS, 12))[: int(r.integers(40, 90))]
        draw.text((width // 10, y), text, fill="black", font_size=16)
    for row in range(6):
        for col in range(4):
            x, y = width // 10 + col * width // 5, height * 65 // 100 + row * height // 20
            draw.rectangle((x, y, x + width // 5, y + height // 20), outline="black")
            draw.text((x + 6, y + 6), f"{r.integers(1, 9999):,}", fill="black", font_size=14)
    if not noise:
        return found
    pixels = np.asarray(found).astype(int) + r.integers(-noise, noise + 1, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def tower_of(layers: int) -> Any:
    """Qwen2.5-VL-3B's tower at full width under a decoder of one narrow layer."""
    text = {"num_hidden_layers": 1, "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "vocab_size": 152000}
    vision = {"depth": layers, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "out_hidden_size": 256}
    vision |= {"fullatt_block_indexes": [i for i in (7, 15, 23, 31) if i < layers]}
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()


def main() -> None:
    """Measure, and print a line a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8, help="of the tower; the real one has 32")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--size", default="1288x980")
    options = parser.parse_args()
    torch.set_num_threads(1)
    width, height = map(int, options.size.split("x"))
    model, processor = tower_of(options.layers), Qwen2VLImageProcessor()
    for noise, rule in ((0, "threshold=0.0"), (2, "threshold=0.0"), (2, "threshold=0.04, std=0.27"), (2, "keep=0.5")):
        inputs = processor(page((width, height), 0, noise), return_tensors="pt")
        ratios, kept = [], 0
        with torch.no_grad():
            for turn in range(options.turns + 1):
                seconds = []
                for wrapped in (False, True) if turn % 2 else (True, False):
                    if wrapped:
                        vtc.compress(model, f"pixelprune({rule})")
                    start = time.process_time()
                    found = model.get_image_features(**inputs, return_dict=True)
                    seconds.append((wrapped, time.process_time() - start))
                    if wrapped:
                        kept = int((found.pooler_output[0].abs().sum(-1) > 0).sum())
                        vtc.restore(model)
                if turn:  # the first warms up
                    taken = dict(seconds)
                    ratios.append(taken[False] / taken[True])
        total = len(found.pooler_output[0])
        print(
            f"{options.size}, {options.layers} layers, noise {noise}, {rule}: {kept} of {total} tokens "
            f"({kept / total:.0%}), tower {statistics.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]"
        )


if __name__ == "__main__":
    main()
