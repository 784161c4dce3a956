"""Where a vision tower's outliers and its class token look: ``python benchmarks/first_look.py [MODEL]``.

By layer, over drawn scenes: the longest token's norm over the median, the share of tokens more than twice the median
(sinks or registers in disguise), how much of the class token's attention falls on its best tenth of the patches, and
the probability that a patch with a named thing gets more of it than one without (0.5: the class token does not tell
them apart). Prints a markdown table; docs/real-model.md has that of bundled-real.
"""

from __future__ import annotations

import argparse
import io
import random
from typing import Any

import torch
from PIL import Image
from rich.progress import track
from scipy.stats import mannwhitneyu
from torch import Tensor

from vtc.eval.train.scenes.build_evaluation_set import QUALITY
from vtc.eval.train.scenes.render import compress, patch_labels, render
from vtc.eval.train.scenes.scene import DENSE, Scene, sample_scene
from vtc.eval.vlm.loading import load_model


def figures_of(tower: Any, pixels: Tensor, named: Tensor) -> list[tuple[float, float, float, float]]:
    """Of each layer the four figures of a picture; `named` `[N]` bool are the patches with a thing."""
    out = tower(pixels, output_hidden_states=True, output_attentions=True)
    found = []
    for states, attention in zip(out.hidden_states[1:], out.attentions, strict=True):
        norm = states[0, 1:].norm(dim=-1)
        seen = attention[0, :, 0, 1:].mean(0)
        best = seen.topk(len(seen) // 10).values.sum() / seen.sum()
        told = mannwhitneyu(seen[named], seen[~named]).statistic / (named.sum() * (~named).sum())
        found.append(
            (
                float(norm.max() / norm.median()),
                float((norm > 2 * norm.median()).float().mean()),
                float(best),
                float(told),
            )
        )
    return found


@torch.no_grad()
def main() -> None:
    """Look, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="bundled-real")
    parser.add_argument("--scenes", type=int, default=20)
    options = parser.parse_args()
    loaded = load_model(options.model)
    tower = loaded.model.model.vision_tower
    tower.set_attn_implementation("eager")
    rows = []
    for index in track(range(options.scenes), description="look"):
        scene: Scene = sample_scene(random.Random(f"first look/{index}"), DENSE)
        picture = Image.open(io.BytesIO(compress(render(scene), QUALITY))).convert("RGB")
        pixels = loaded.processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
        grid = pixels.shape[-1] // tower.config.patch_size
        named = torch.from_numpy(patch_labels(scene, grid).color.reshape(-1) >= 0)
        rows.append(figures_of(tower, pixels, named))
    mean = torch.tensor(rows).mean(0)
    print("| layer | longest over median norm | over twice the median | class token: best tenth has | names things |")
    print("|---|---|---|---|---|")
    for layer, (longest, far, best, told) in enumerate(mean.tolist(), 1):
        print(f"| {layer} | {longest:.2f} | {100 * far:.1f}% | {100 * best:.0f}% | {told:.2f} |")


if __name__ == "__main__":
    main()
