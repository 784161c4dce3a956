"""PriorTR's vectors: one for each of the authors' ports."""

from __future__ import annotations

import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of

import vtc


@golden("priortr")
def check(vector: Golden) -> None:
    meta = vector.meta
    length, n, system, text = (meta[name] for name in ("length", "n", "system", "text"))
    logits = meta["spread"] * torch.from_numpy(vector.draws()(meta["heads"], text, length))
    unseen = torch.arange(length) > (system + n + torch.arange(text))[:, None]
    seen = logits.masked_fill(unseen, float("-inf")).softmax(-1)[None, ..., system : system + n]
    rows = torch.cat([torch.zeros(1, meta["heads"], system, n), seen], 2)  # what stands before sees no picture
    pruner = vtc.parse("priortr", keep=meta["keep"], **meta["parameters"])[0]
    source = Served(dict(zip(pruner.signals, (rows, rows[:, :, -1:]), strict=True)))
    source.behind = (torch.arange(system + text) >= system)[None]
    tokens = tokens_of(np.zeros((n, 1), np.float32), meta["keep"], source, stage="decoder", layer=3)
    np.testing.assert_allclose(pruner.score(tokens)[0], vector["score"], atol=1e-6)
    assert sorted(pruner.select(tokens, meta["keep"])[0].tolist()) == vector["kept_sorted"].tolist()
