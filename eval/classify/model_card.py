"""The card of the digit classifier, written from the figures of its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEXT = """---
license: apache-2.0
library_name: timm
pipeline_tag: image-classification
---

# vtc digits

A small vision transformer (timm's `VisionTransformer`) that reads one handwritten digit on a cluttered picture, trained
from scratch to compare token pruning in classifiers on a CPU: `vtc bench --model timm:digits`. It is of no use for
anything else. `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it.

* {side} x {side} px, patches of {patch_size} px, class token, {tokens} patches; width {embed_dim},
  {depth} blocks of {num_heads} heads; weights in float16.
* Data: scikit-learn's digits, 8 x 8 px (UCI "Optical Recognition of Handwritten Digits", E. Alpaydin
  and C. Kaynak, CC BY 4.0). {train} digits were trained on, {held_out} were held out; the same people
  have written both.
* Pictures: a digit {small} to {large} px wide anywhere, {scraps} scraps of other digits around it, an uneven
  background. Training draws them anew; each held-out digit was drawn once, with scraps of held-out
  digits (`test.parquet`: image_id has the digit's place in scikit-learn's data set).
* Recipe: {steps} steps of {batch} pictures, seed {seed}, Muon for the blocks' matrices and AdamW for the
  rest, moving average of the weights: `python -m vtc.eval.classify.train_digits --out DIR`, {minutes} minutes on
  one thread of a busy CPU with {versions}.
* Held-out accuracy: **{accuracy:.1f}%** of {held_out}, looked at once, at the end. `training.json` has the log.
"""


def write_card(out: Path, found: dict[str, Any], shape: dict[str, Any], **drawing: Any) -> None:
    """Write ``README.md``.

    Parameters
    ----------
    out : Path
        The model's folder.
    found : dict
        What ``training.json`` says.
    shape : dict
        Arguments of timm's constructor.
    **drawing
        How the pictures are drawn.
    """
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    figures = found | shape | drawing | {"versions": versions, "accuracy": 100 * found["held_out_accuracy"]}
    figures |= {"tokens": (shape["img_size"] // shape["patch_size"]) ** 2, "minutes": round(found["seconds"] / 60)}
    (out / "README.md").write_text(TEXT.format(**figures))
