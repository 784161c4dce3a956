"""Vectors of correlation-guided compression, derived from its description: there is no code of the authors'."""

from __future__ import annotations

import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of

import vtc
from vtc.pruners.tokencorr import outliers


@golden("tokencorr")
def tokencorr(vector: Golden) -> None:
    meta = vector.meta
    n, d, heads = meta["n"], meta["d"], meta["heads"]
    r = vector.rng()
    centre = r.standard_normal((6, d), dtype=np.float32)
    owner = r.integers(0, 8, n)
    noise = r.standard_normal((n, d), dtype=np.float32)
    keys = np.where((owner < 6)[:, None], centre[np.minimum(owner, 5)] + 0.25 * noise, noise)
    deep = 1.5 * r.standard_normal((heads, n), dtype=np.float32)
    shallow = r.standard_normal((heads, n), dtype=np.float32)
    rows = [torch.from_numpy(x).double().softmax(-1)[None] for x in (deep, shallow)]
    settings = {"tau": meta["tau"], "limit": meta["nmax"] / n}
    pruner = vtc.parse("tokencorr", adaptive=True, **settings)[0]
    x = torch.from_numpy(keys)[None, :, None]
    source = Served(dict(zip(pruner.signals, (x, *rows), strict=True)))
    part, sizes = torch.zeros(1, n, dtype=torch.int64), torch.tensor([[n]])
    redundant = pruner.redundant(x, part, sizes)[0]
    assert redundant.tolist() == vector["redundant"].tolist()
    assert 1 - redundant.double().mean().item() == vector["density"]
    wide = outliers(rows[0].mean(1), part, sizes)[0]
    assert wide.nonzero()[:, 0].tolist() == vector["global_outliers"].tolist()
    budget = int(vector["budget"])
    exact = vtc.parse("tokencorr", keep=budget, **settings)[0]
    for each in (pruner, exact):
        found = each.select(tokens_of(keys, n - 1 if each.adaptive else budget, source), budget)[0]
        assert found[found >= 0].tolist() == vector["kept_sorted"].tolist()
