"""FastV's vectors."""

from __future__ import annotations

import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of

import vtc


@golden("fastv")
def check(vector: Golden) -> None:
    meta = vector.meta
    logits = vector.draws()(meta["heads"], meta["length"])
    rows = torch.softmax(torch.from_numpy(logits), -1)[None, :, None, meta["system"] : meta["system"] + meta["n"]]
    pruner = vtc.parse("fastv", keep=meta["keep"])[0]
    source = Served({pruner.signals[0]: rows})
    tokens = tokens_of(np.zeros((meta["n"], 1), np.float32), meta["keep"], source, stage="decoder", layer=2)
    np.testing.assert_allclose(pruner.score(tokens)[0], vector["score"], atol=1e-6)
    assert sorted(pruner.select(tokens, meta["keep"])[0].tolist()) == vector["kept_sorted"].tolist()
