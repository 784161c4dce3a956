"""Vectors of PixelPrune."""

from __future__ import annotations

import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of

import vtc
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import Pixels


@golden("pixelprune")
def pixelprune(vector: Golden) -> None:
    meta, r = vector.meta, vector.rng()
    h, w, c = meta["h"], meta["w"], meta["c"]
    blocks = r.integers(0, 5, (-(-h // 3), -(-w // 4), 1)).repeat(3, 0).repeat(4, 1)[:h, :w]
    levels = 8 + 8 * blocks + r.integers(-meta["noise"], meta["noise"] + 1, (h, w, c))
    pixels = torch.from_numpy((levels / 32 - 1).astype(np.float32).reshape(1, h * w, 1, c))
    metric = "max" if meta["metric"] == "exact" else meta["metric"]
    pruner = vtc.parse("pixelprune", threshold=meta["threshold"], metric=metric)[0]
    tokens = tokens_of(np.zeros((h * w, 4), np.float32), 1, Served({Pixels(): pixels}), [Layout((Grid(h, w),))])
    found = pruner.select(tokens, 1)[0]
    assert sorted(found[found >= 0].tolist()) == vector["kept"].tolist()
