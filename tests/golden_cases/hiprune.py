"""HiPrune's vectors: one picture, the crops of one, and grids of other sizes; their neighbours go round the sides."""

from __future__ import annotations

import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of

import vtc
from vtc.pruners.layout import Grid, Layout


@golden("hiprune")
def check(vector: Golden) -> None:
    meta = vector.meta
    rows, cols, pictures = meta["rows"], meta["cols"], meta["pictures"]
    n = rows * cols
    logits = torch.from_numpy(vector.draws()(2, pictures, meta["heads"], n))
    seen = logits.softmax(-1).transpose(1, 2).flatten(2)[:, None]  # the crops one after another
    pruner = vtc.parse("hiprune", keep=meta["keep"], alpha=meta["alpha"], official=True)[0]
    source = Served(dict(zip(pruner.signals, seen, strict=True)))
    layout = Layout(tuple(Grid(rows, cols) for _ in range(pictures)))
    tokens = tokens_of(np.zeros((pictures * n, 1), np.float32), meta["keep"], source, [layout])
    kept = pruner.select(tokens, meta["keep"])[0].view(pictures, -1)
    assert (kept - n * torch.arange(pictures)[:, None]).tolist() == vector["kept_sorted"].tolist()
