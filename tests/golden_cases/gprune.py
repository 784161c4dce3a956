"""G-Prune's vectors: a thumbnail and a mosaic with its row ends, and what the authors keep of each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from golden_support import Golden, golden, tokens_of

import vtc
from vtc.pruners.layout import Grid, Layout


@golden("gprune")
def check(vector: Golden) -> None:
    meta, base = vector.meta, Grid(24, 24, "base")
    layout = Layout((base, Grid(meta["rows"], meta["cols"], "mosaic", "row")))
    ids = torch.from_numpy(np.flatnonzero(layout.array[:, 2] >= 0))
    tokens = replace(tokens_of(vector.input("features")[ids], meta["keep"], layouts=[layout]), ids=ids[None])
    options = {name: meta[name] for name in ("similarity", "temperature", "iterations")}
    pruner = vtc.parse("gprune", keep=meta["keep"], **options)[0]
    score = pruner.score(tokens)[0][0]
    np.testing.assert_allclose(score[: base.tokens], vector["score_base"], rtol=2e-5)
    np.testing.assert_allclose(score[base.tokens :], vector["score_mosaic"], rtol=2e-5)
    assert ids[pruner.select(tokens, meta["keep"])[0]].tolist() == vector["kept_sorted"].tolist()
