"""How much the visual tokens still tell at each decoder layer, and from which layer on nothing ("information horizon").

Token information (arXiv 2512.07580): from layer K on only one window of an image's tokens is kept; with p the
probability of the first token of the true answer then, and p_text the same with NO visual token from K on, the window's
information is ``I_K = p - p_text``. It is keep-one against keep-none, not leave-one-out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtc.eval.vlm.loading import Loaded
from vtc.eval.vlm.prompts import Row
from vtc.pruners.layout import Layout

from .replay_layers import Replay


def grid_windows(rows: int, cols: int, size: int) -> list[list[list[int]]]:
    """Token ids of the `size x size` windows of a grid, as ``windows[down][across]``; smaller at the far edges."""
    return [
        [
            [(y + i) * cols + x + j for i in range(min(size, rows - y)) for j in range(min(size, cols - x))]
            for x in range(0, cols, size)
        ]
        for y in range(0, rows, size)
    ]


def layout_windows(layout: Layout, size: int) -> list[list[int]]:
    """Token ids of the windows of all grids of a span, newline tokens left out."""
    found, where = [], layout.array
    for i, grid in enumerate(layout.grids):
        ids = np.flatnonzero((where[:, 0] == i) & (where[:, 2] >= 0))
        for line in grid_windows(grid.rows, grid.cols, size):
            found += [ids[window].tolist() for window in line]
    return found


def information(logits: Tensor, text_logits: Tensor, answer: int) -> tuple[Tensor, Tensor]:
    """Probability of token `answer` with each window alone, and its information.

    Parameters
    ----------
    logits : Tensor
        `[..., V]`, one window kept each.
    text_logits : Tensor
        `[V]`, none kept.
    answer : int
        First token of the true answer.

    Returns
    -------
    Tensor, Tensor
        `[...]` float32 each: p, and p - p_text.
    """
    p = logits.float().softmax(-1)[..., answer]
    return p, p - text_logits.float().softmax(-1)[answer]


def answer_token(processor: Any, answer: str, logits: Tensor) -> int:
    """First token of the true `answer` in the spelling the model prefers (leading space or none, capital or not)."""
    tokenizer = getattr(processor, "tokenizer", processor)
    forms = {lead + form for form in (answer, answer[:1].upper() + answer[1:]) for lead in ("", " ")}
    first = {tokenizer(form, add_special_tokens=False).input_ids[0] for form in forms if form.strip()}
    if not first:
        raise ValueError("a question has no answer; vtc horizon needs the true answers")
    return max(sorted(first), key=lambda token: float(logits[token]))


def measure(
    loaded: Loaded, row: Row, layers: Sequence[int], window: int | None, batch_size: int = 64
) -> dict[str, Any]:
    """What one question says at each layer.

    Parameters
    ----------
    loaded : Loaded
        The plain model and its processor.
    row : Row
        The question with its image and true answer.
    layers : sequence of int
        The K to look at.
    window : int or None
        Side of the windows; None only withdraws everything (enough for VTW's search).

    Returns
    -------
    dict
        Plain values: ``p_full`` and ``right_full`` of the unpruned model; per layer ``p_text``, ``right_text`` and
        ``kl`` (from the unpruned prediction to the one without visual tokens), and ``info`` of each window.
    """
    replay = Replay(loaded.model, row)
    low = [layer for layer in layers if not replay.first <= layer < replay.depth]
    if low:
        raise ValueError(
            f"layer {low[0]} can't be looked at: {loaded.name} allows {replay.first} to {replay.depth - 1}"
        )
    answer = answer_token(loaded.processor, row.question.answer, replay.logits)
    full = replay.logits.log_softmax(-1)
    kept: list[Tensor] = [torch.empty(0, dtype=torch.long)]
    for layout, columns in zip(replay.layouts, replay.columns, strict=True):
        kept += [columns[ids] for ids in (layout_windows(layout, window) if window else ())]
    found: dict[str, Any] = {
        "p_full": round(float(full[answer].exp()), 6),
        "right_full": int(full.argmax()) == answer,
        "layers": list(layers),
        "p_text": [],
        "right_text": [],
        "kl": [],
        "info": [],
    }
    for layer in layers:
        logits = replay.keeping(layer, kept, batch_size)
        blind = logits[0].log_softmax(-1)
        found["p_text"].append(round(float(blind[answer].exp()), 6))
        found["right_text"].append(int(blind.argmax()) == answer)
        found["kl"].append(round(float((full.exp() * (full - blind)).sum().clamp(min=0)), 8))
        if window:
            found["info"].append([round(x, 6) for x in information(logits[1:], logits[0], answer)[1].tolist()])
    return found


@dataclass(frozen=True)
class LayerInformation:
    """Means over questions at one layer K.

    ``mean_info`` is of ``|I|`` over windows, ``best_info`` of the strongest window's ``|I|``, ``p_text`` of the
    answer's probability without visual tokens from K on, ``accuracy`` whether its first token is then the most likely,
    ``kl`` the divergence from the unpruned prediction.
    """

    layer: int
    mean_info: float | None
    best_info: float | None
    p_text: float
    accuracy: float
    kl: float


def layer_means(rows: Sequence[Mapping[str, Any]]) -> list[LayerInformation]:
    """Means over the questions' ``measure`` results, layer by layer."""
    out = []
    for i, layer in enumerate(rows[0]["layers"]):
        windows = [np.abs(row["info"][i]) for row in rows] if rows[0]["info"] else None
        out.append(
            LayerInformation(
                layer,
                float(np.mean([w.mean() for w in windows])) if windows else None,
                float(np.mean([w.max() for w in windows])) if windows else None,
                float(np.mean([row["p_text"][i] for row in rows])),
                float(np.mean([row["right_text"][i] for row in rows])),
                float(np.mean([row["kl"][i] for row in rows])),
            )
        )
    return out


def horizon_layer(layers: Sequence[int], values: Sequence[float], threshold: float) -> int | None:
    """The first layer from which on all `values` are below `threshold`; None if the last one is not."""
    found = None
    for layer, value in sorted(zip(layers, values, strict=True), reverse=True):
        if not value < threshold:
            break
        found = layer
    return found


def withdrawal_layer(layers: Sequence[int], kl: Sequence[float], eta: float) -> int | None:
    """VTW's K: the first layer at which withdrawing all visual tokens costs a mean KL divergence of at most `eta`."""
    return next((layer for layer, value in sorted(zip(layers, kl, strict=True)) if value <= eta), None)
