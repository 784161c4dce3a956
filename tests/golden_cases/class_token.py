"""Vectors of VisPruner, HiRED, VScan and HoloV."""

from __future__ import annotations

import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of
from torch import Tensor

import vtc
from vtc.pruners.layout import Grid, Layout


def drawn(vector: Golden, *shapes: tuple[int, ...]) -> list[Tensor]:
    draw = vector.draws()
    return [torch.from_numpy(draw(*shape)) for shape in shapes]


def modes(name: str, **params: object) -> list[vtc.Pruner]:
    """The method as the authors wrote it and as it is by default: the same where budgets come out even."""
    return [vtc.parse(name, **params, official=official)[0] for official in (True, False)]  # type: ignore[arg-type]


@golden("vispruner")
def vispruner(vector: Golden) -> None:
    meta = vector.meta
    x, logits = drawn(vector, (1, meta["n"], meta["d"]), (1, meta["heads"], meta["n"]))
    attention = logits.softmax(-1)
    pruner = vtc.parse("vispruner", keep=meta["keep"], important=meta["important_ratio"])[0]
    source = Served(dict(zip(pruner.signals, (attention, x[:, :, None]), strict=True)))
    kept = pruner.select(tokens_of(x, meta["keep"], source), meta["keep"])[0]
    assert sorted(kept.tolist()) == vector["kept_sorted"].tolist()


@golden("holov")
def holov(vector: Golden) -> None:
    """Where a crop is smaller than its budget, the authors keep fewer."""
    meta, expected = vector.meta, vector["kept_order"].tolist()
    x, logits = drawn(vector, (1, meta["n"], meta["d"]), (1, meta["n"]))
    attention = logits.softmax(-1)[:, None]
    for pruner in modes("holov", keep=meta["keep"], crops=meta["crops"], alpha=meta["alpha"]):
        tokens = tokens_of(x, meta["keep"], Served({pruner.signals[0]: attention}))
        found = pruner.select(tokens, meta["keep"])[0]
        if pruner.adaptive_count or len(expected) == meta["keep"]:
            assert found[found >= 0].tolist() == expected


@golden("vscan")
def vscan(vector: Golden) -> None:
    meta = vector.meta
    x, logits = drawn(vector, (1, meta["n"], meta["d"]), (2, 1, meta["heads"], meta["n"]))
    shallow, deep = logits.softmax(-1)
    side = int(meta["n"] ** 0.5)
    settings = {"keep": meta["keep"], "ratio": 1, "window": meta["window"], "global_ratio": meta["global_ratio"]}
    pruner = vtc.parse("vscan", **settings, official=True)[0]
    source = Served(dict(zip(pruner.signals, (shallow, deep), strict=False)))
    found = pruner.select(tokens_of(x, meta["keep"], source, [Layout((Grid(side, side),))]), meta["keep"])
    kept = found.index[0][found.index[0] >= 0]
    assert kept.tolist() == vector["kept_sorted"].tolist()
    made = found.features[:, : len(kept)]
    np.testing.assert_allclose(made[0].norm(dim=-1), vector["kept_rownorm"], atol=1e-4)
    np.testing.assert_allclose(made[0, :, :8], vector["kept_first8"], atol=1e-4)


@golden("hired")
def hired(vector: Golden) -> None:
    """The vector counts crop by crop; in a picture the crops' rows are interleaved."""
    meta = vector.meta
    parts, n = meta["parts"], meta["n"]
    shallow, deep = (logits.softmax(-1) for logits in drawn(vector, *[(parts, meta["heads"], n)] * 2))
    side, across = int(n**0.5), int((parts - 1) ** 0.5)
    down = (parts - 1) // across
    cuts = tuple(tuple(side * i for i in range(1, crops)) for crops in (down, across))
    layout = Layout((Grid(side, side, "base"), Grid(side * down, side * across, "mosaic", cuts=cuts)))
    crops = torch.arange(n, parts * n).view(down, across, side, side).transpose(1, 2).flatten()
    order = torch.cat([torch.arange(n), crops])  # the vector's number of each token in reading order
    budget = int(parts * n * meta["rate"])
    pruner = vtc.parse("hired", keep=budget, alpha=meta["alpha"], official=True)[0]
    seen = [rows.transpose(0, 1).flatten(1)[None, :, order] for rows in (shallow, deep)]
    source = Served(dict(zip(pruner.signals, seen, strict=True)))
    kept = pruner.select(tokens_of(np.zeros((parts * n, 1), np.float32), budget, source, [layout]), budget)[0]
    kept = order[kept[kept >= 0]].sort().values
    assert kept.tolist() == vector["kept_flat"].tolist()
    assert (kept // n).bincount(minlength=parts).tolist() == vector["mask_rows_kept"].tolist()
