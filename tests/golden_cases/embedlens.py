"""Vector of EmbedLens: which tokens the authors remove for given class ids."""

from __future__ import annotations

import numpy as np
from golden_support import Golden, Served, golden, tokens_of
from torch import from_numpy

import vtc


@golden("embedlens")
def embedlens(vector: Golden) -> None:
    meta, ids = vector.meta, vector.meta["ids"]
    draw = vector.rng()
    table = draw.standard_normal((meta["vocab"], meta["d"]), dtype=np.float32)
    x = draw.standard_normal((meta["n"], meta["d"]), dtype=np.float32)
    planted = draw.integers(0, len(ids) + 1, meta["n"])
    assert (planted == vector["assigned"]).all()
    near = np.append(ids, 0)[planted]
    x = np.where((planted < len(ids))[:, None], np.float32(0.6) * x + np.float32(1.5) * table[near], x)
    removed = set(vector["removed"].tolist())
    for sink in range(len(ids) + 1):  # how the ids are shared out does not matter here
        [pruner] = vtc.parse("embedlens", sink=tuple(ids[:sink]), dead=tuple(ids[sink:]), top=meta["top_k"])
        tokens = tokens_of(x, meta["n"] // 2, Served(table=from_numpy(table)))
        [kept] = pruner.select(tokens, meta["n"] // 2).tolist()
        assert {i for i in kept if i >= 0} == set(range(meta["n"])) - removed
