"""What a training job leaves: its record, its curve and the card of what it made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from vtc.eval.files.atomic import write_atomic

REPORT, CURVE, CARD = "report.json", "curves.png", "README.md"
SMOOTH = 20


def smoothed(losses: Sequence[float], over: int = SMOOTH) -> list[float]:
    """The mean of each loss and the `over - 1` before it."""
    return [sum(part) / len(part) for part in (losses[max(0, i - over + 1) : i + 1] for i in range(len(losses)))]


def draw_curve(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Loss over steps, as it is and smoothed."""
    steps, losses = [row["step"] for row in history], [row["loss"] for row in history]
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    axis.plot(steps, losses, linewidth=0.6, alpha=0.4, label="a step")
    axis.plot(steps, smoothed(losses), linewidth=1.5, label=f"mean of {SMOOTH} steps")
    axis.set(xlabel="step", ylabel="loss on the answers")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def card(report: Mapping[str, Any], whole: bool) -> str:
    """The model card; `whole` says whether the folder holds a model, and not a network alone."""
    method, base, tokens = report["method"], report["model"], report["tokens"]
    keep = next(iter(tokens), None)
    call = f"vtc.load(folder, keep={keep})" if whole else f"vtc.load({base!r}, {method!r}, keep={keep}, params=...)"
    how = (
        "It is a stock checkpoint with `vtc_config.json` and the network beside it: without vtc it loads as the plain "
        "model, and `vtc.load` applies the method."
        if whole
        else f"It holds the method's network alone, for the unchanged {base}: `params={{'weights': folder}}`."
    )
    loss = f"{report['loss']['first']:.3f} at the start, {report['loss']['last']:.3f} at the end (means of {SMOOTH})"
    counts = ", ".join(f"{k} ({100 * share:.0f}% of steps)" for k, share in tokens.items()) or "as the method says"
    return f"""---
library_name: transformers
tags: [vtc, visual-token-compression, {method}]
---

# {method} for {base}

Made by `{report["command"]}`. {how}

```python
import vtc

model = {call}
```

- Trained: {", ".join(report["parts"])}
- Steps: {report["steps"]} of {report["batch"]} questions, on {report["processes"]} process(es), seed {report["seed"]}
- Tokens: {counts}
- Data: {report["data"]}
- Loss on the answers: {loss}; the curve is in `{CURVE}`, all figures in `{REPORT}`
- Accuracy is not measured here: `vtc bench --model ... --pruners {method} --keep ...`
"""


def write_files(folder: Path, report: Mapping[str, Any], whole: bool) -> None:
    """Record, curve and card."""
    write_atomic(folder / REPORT, json.dumps(dict(report), indent=1) + "\n")
    draw_curve(report["history"], folder / CURVE)
    write_atomic(folder / CARD, card(report, whole))
