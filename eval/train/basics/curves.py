"""Draw the learning curves of a run: ``python -m vtc.eval.train.basics.curves --run DIR --out FILE.png``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_PANELS = {
    "vision": ("color", "shape", "letter", "first_digit", "second_digit", "phrase"),
    "align": ("position_r2", "color", "shape", "letter", "first_digit", "second_digit"),
    "language": ("color", "shape", "exist", "count", "more", "spatial", "quadrant", "ocr", "reading", "easyvqa"),
}


def draw(run: Path, target: Path) -> None:
    """Draw the accuracy curves of all stages into one PNG file.

    Parameters
    ----------
    run : Path
        Folder with the ``.jsonl`` log of each stage.
    target : Path
        PNG file to write.
    """
    figure, axes = plt.subplots(1, len(_PANELS), figsize=(15, 4.2), sharey=True)
    for axis, (stage, names) in zip(axes, _PANELS.items(), strict=True):
        rows = [json.loads(line) for line in (run / f"{stage}.jsonl").read_text().splitlines()]
        for name in names:
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
        axis.set_title(stage)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axes[0].set_ylim(0, 1.02)
    axes[0].set_ylabel("accuracy on fresh training images")
    figure.tight_layout()
    figure.savefig(target, dpi=90)
    plt.close(figure)


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    draw(options.run, options.out)


if __name__ == "__main__":
    main()
