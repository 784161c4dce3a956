"""Nuwa's vectors: encoder states and attention, and what the authors keep and merge of them."""

from __future__ import annotations

import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of

import vtc
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.nuwa import ATTENTION, LATE
from vtc.pruners.signals import PreProjector


@golden("nuwa")
def check(vector: Golden) -> None:
    meta, draw = vector.meta, vector.draws()
    rows, cols, d, heads, first = (meta[name] for name in ("rows", "cols", "d", "heads", "first"))
    n = rows * cols
    if meta["one"]:
        merged, likeness = (torch.from_numpy(draw(1, n, d)) for _ in range(2))
        late = [likeness] * len(LATE)
        attention = torch.from_numpy(draw(1, heads, 1, n)).softmax(-1)[:, :, 0]
    else:  # a class token comes first
        states = torch.from_numpy(draw(25, 1, n + 1, d))[:, :, 1:]
        merged, late = states[23], list(states[16:])
        attention = torch.from_numpy(draw(1, heads, 1, n + 1)).softmax(-1)[:, :, 0, 1:]
    reads = {ATTENTION: attention, PreProjector(): merged[:, :, None]}
    reads |= {signal: x[:, :, None] for signal, x in zip(LATE, late, strict=True)}
    reach = meta["distance"] / ((rows - 1) ** 2 + (cols - 1) ** 2)
    settings = {"per_region": meta["per_region"], "pillars": meta["pillars"], "reach": reach, "official": True}
    pruner = vtc.parse("nuwa", **settings)[0]
    found = pruner.select(tokens_of(merged, first, Served(reads), [Layout((Grid(rows, cols),))]), first)
    assert found.index[0].tolist() == vector["kept_sorted"].tolist()
    np.testing.assert_allclose(found.features[0].norm(dim=-1), vector["kept_rownorm"], rtol=1e-4)
    np.testing.assert_allclose(found.features[0, :, :4], vector["kept_first4"], atol=1e-4)
    if "average" in meta:
        stops = vtc.parse("nuwa", keep=meta["average"])[0].stops(32)
        assert [stop.keep for stop in stops] == [first, meta["average"] // 4]
