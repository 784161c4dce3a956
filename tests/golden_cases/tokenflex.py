"""TokenFLEX's vectors: the pooling, through the method with an untrained network, which adds nothing to it."""

from __future__ import annotations

import golden_trained_draws as draws
import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of

from vtc.pruners import make_pruner
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import PreProjector


@golden("TokenFLEX")
@torch.no_grad()
def check(vector: Golden) -> None:
    meta = vector.meta
    grid, rows = meta["grid"], meta["batch"]
    x = draws.normal(np.random.default_rng(meta["seed"]), rows, grid * grid, meta["width"])
    assert draws.sha(x) == meta["sha"]
    source = Served({PreProjector(): torch.from_numpy(x)[:, :, None]})
    for size in meta["sizes"]:
        k, expected = size * size, vector[f"pool_{size * size}"]
        pruner = make_pruner("tokenflex", keep=k, weights="untrained")
        found = pruner.select(tokens_of(x, k, source, [Layout((Grid(grid, grid),))] * rows), k)
        np.testing.assert_allclose(found.features, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        assert all(len(set(row)) == k for row in found.index.tolist())
