"""Train the small ViT on digits: ``python -m vtc.eval.classify.train_digits --out DIR``, half an hour on one core."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vtc.eval.train.basics.distributed_ranks import Ranks
from vtc.eval.train.basics.optimizer import MixedOptimizer

from .digit_pictures import CLASSES, SCRAPS, SIDE, SIZES, TOTAL, Digits, load_split, render
from .model_card import write_card

ARCHITECTURE = "vit_tiny_patch16_224"  # timm's, with everything that makes it large made small
ARGUMENTS: dict[str, Any] = {
    "img_size": SIDE,
    "patch_size": 6,
    "embed_dim": 96,
    "depth": 8,
    "num_heads": 3,
    "mlp_ratio": 2,
    "num_classes": len(CLASSES),
}
MEAN = STD = 0.5
STEPS, BATCH = 1800, 64
RATE, MATRIX_RATE = 2e-3, 0.02
WARM_UP = 50
SMOOTHING = 0.05
PATCHES = 0.5  # weight of the loss on the mean of the patch tokens, whose head is thrown away
AVERAGE = 0.99  # of the weights, towards the end
LOG = 100


def build_model() -> Any:
    """The untrained classifier, timm's ``VisionTransformer``."""
    import timm

    return timm.create_model(ARCHITECTURE, **ARGUMENTS)


def inputs(pictures: Tensor) -> Tensor:
    """Grey pictures `[n, H, W]` uint8 as the model takes them, `[n, 3, H, W]`."""
    return ((pictures[:, None].float() / 255 - MEAN) / STD).expand(-1, 3, -1, -1)


def draw_test(test: Digits) -> Tensor:
    """The pictures of the held-out digits, the same every time."""
    return render(test.pixels, test.pixels, torch.Generator().manual_seed(2))


@torch.no_grad()
def accuracy(model: nn.Module, pictures: Tensor, labels: Tensor) -> float:
    """Share that the model gets right."""
    model.eval()
    found = torch.cat([model(inputs(part)).argmax(1) for part in pictures.split(BATCH)])
    model.train()
    return float((found == labels).float().mean())


def train(out: Path, steps: int = STEPS, batch: int = BATCH, seed: int = 0) -> dict[str, Any]:
    """Train and save in timm's ``local-dir:`` format, with the held-out pictures.

    Parameters
    ----------
    out : Path
        Gets ``config.json``, ``model.safetensors`` (half precision), ``test.parquet``, ``training.json`` and a card.
    steps, batch : int
        Steps, and pictures of each.
    seed : int
        Of the weights and the training pictures; the held-out digits and their pictures do not depend on it.

    Returns
    -------
    dict
        What ``training.json`` says: versions, the log, and the accuracy on held-out digits, looked at once at the end.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    digits, held_out = load_split()
    model, extra = build_model(), nn.Linear(ARGUMENTS["embed_dim"], len(CLASSES))
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    optimizer = MixedOptimizer([*model.parameters(), *extra.parameters()], matrices, RATE, MATRIX_RATE, Ranks())
    mean = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE))
    log, right, started = [], 0.0, time.time()
    for step in range(1, steps + 1):
        chosen = torch.randint(len(digits.labels), (batch,), generator=generator)
        pictures, labels = render(digits.pixels[chosen], digits.pixels, generator), digits.labels[chosen]
        tokens = model.forward_features(inputs(pictures))
        said = model.forward_head(tokens)
        loss = cross_entropy(said, labels, label_smoothing=SMOOTHING)
        loss = loss + PATCHES * cross_entropy(extra(tokens[:, 1:].mean(1)), labels, label_smoothing=SMOOTHING)
        factor = min(1.0, step / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimizer.step(loss, factor)
        mean.update_parameters(model)
        right += float((said.argmax(1) == labels).float().mean())
        if step % LOG == 0 or step == steps:
            n = (step - 1) % LOG + 1
            log.append({"step": step, "loss": round(loss.item(), 4), "accuracy": round(right / n, 4)})
            print(f"{log[-1]} {time.time() - started:.0f} s", flush=True)
            right = 0.0
    found = save(out, mean.module.half().float(), held_out, log)
    found |= {"steps": steps, "batch": batch, "seed": seed, "seconds": round(time.time() - started)}
    (out / "training.json").write_text(json.dumps(found, indent=1) + "\n")
    describe(out, found)
    return found


def describe(out: Path, found: dict[str, Any]) -> None:
    """Write the model's card from what ``training.json`` says."""
    sizes = dict(zip(("small", "large"), SIZES, strict=True))
    write_card(out, found, ARGUMENTS, side=SIDE, scraps=SCRAPS, train=TOTAL - found["held_out"], **sizes)


def save(out: Path, model: Any, held_out: Digits, log: list[dict[str, float]]) -> dict[str, Any]:
    """Write the model and the pictures of the held-out digits; returns figures and versions."""
    import platform
    from importlib.metadata import version

    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.torch import save_file

    from .digit_pictures import as_png

    out.mkdir(parents=True, exist_ok=True)
    pictures = draw_test(held_out)
    right = accuracy(model, pictures, held_out.labels)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, out / "model.safetensors")
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(CLASSES),
        "num_features": ARGUMENTS["embed_dim"],
        "model_args": ARGUMENTS,
        "pretrained_cfg": {
            "input_size": [3, SIDE, SIDE],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [MEAN] * 3,
            "std": [STD] * 3,
            "num_classes": len(CLASSES),
            "label_names": list(CLASSES),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        },
    }
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    table = {
        "image_id": [f"digit-{i}" for i in held_out.where],
        "image": [as_png(p) for p in pictures],
        "label": [CLASSES[i] for i in held_out.labels],
    }
    pq.write_table(pa.table(table), out / "test.parquet")
    versions = {p: version(p) for p in ("torch", "timm", "scikit-learn")}
    found = {"held_out_accuracy": round(right, 4), "held_out": len(held_out.labels), "log": log}
    return found | {"versions": {"python": platform.python_version(), **versions}}


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m vtc.eval.classify.train_digits", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its test pictures")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = train(options.out, options.steps, options.batch, options.seed)
    print(f"held out: {100 * found['held_out_accuracy']:.1f}% of {found['held_out']}")


if __name__ == "__main__":
    main()
