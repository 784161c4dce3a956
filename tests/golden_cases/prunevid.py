"""PruneVid's vectors: what the authors merge of a video, and which of it they keep in the decoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of

import vtc
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.prunevid import LOOKS
from vtc.pruners.signals import TextEmbeddings

from .videos import noisy_pictures, same_vectors


@golden("prunevid")
def check(vector: Golden) -> None:
    meta, r = vector.meta, vector.rng()
    frames, n, d = meta["frames"], meta["n"], meta["d"]
    x = noisy_pictures(meta, r).reshape(frames * n, d)
    given = {"tau": meta["tau"], "scenes": meta["scenes"], "cluster": meta["cluster"], "tail": meta["tail"]}
    pruner = vtc.parse("prunevid", neighbours=meta["k"], official=True, **given)[0]
    tokens = tokens_of(x, frames * n // 2, layouts=[Layout((Grid(1, n, "frame"),) * frames)])
    found = pruner.select(tokens, frames * n // 2)
    same_vectors(found, vector["features"])

    index = found.index[0][found.index[0] >= 0]
    made = found.features[0, : len(index)].numpy()
    order = np.lexsort(made.T[::-1])
    attention = r.standard_normal((meta["heads"], meta["text"], len(made)), dtype=np.float32)
    looks = torch.empty(1, 1, meta["text"], len(made))
    looks[0, 0][:, order.copy()] = torch.from_numpy(attention).softmax(-1).amax(0)
    source = Served({LOOKS: looks}, {TextEmbeddings(): torch.zeros(1, meta["text"], 1)})
    left = replace(tokens, ids=index[None], counts=[len(made)], stage="decoder", source=source)
    kept = pruner.select(replace(left, features=found.features[:, : len(index)]), 1)[0]
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    assert sorted(place[kept[kept >= 0].numpy()]) == vector["kept_sorted"].tolist()
