"""SparseVLM's vectors: raters, scores, and the recycled tokens' clusters."""

from __future__ import annotations

import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of

import vtc
from vtc.pruners.base import Merged
from vtc.pruners.signals import DecoderAttention, Projected, TextEmbeddings


@golden("sparsevlm")
def check(vector: Golden) -> None:
    meta, draw = vector.meta, vector.draws()
    length, heads, n, system = (meta[name] for name in ("length", "heads", "n", "system"))
    size = meta["text"]
    embeddings = torch.from_numpy(draw(1, length, meta["d"]))
    logits = torch.from_numpy(draw(heads, size, length))
    hidden = torch.from_numpy(draw(1, length, meta["d"]))
    visual, behind = slice(system, system + n), slice(system + n, length)
    attention = torch.zeros(1, heads, system + size, n)  # the system prompt's rows don't see the image
    attention[0, :, system:] = logits.softmax(-1)[..., visual]
    source = Served(
        {DecoderAttention(queries="text"): attention, Projected(): embeddings[:, visual]},
        {TextEmbeddings(): torch.cat([embeddings[:, :system], embeddings[:, behind]], 1)},
        behind=(torch.arange(system + size) >= system)[None],
    )
    keep = min(meta["keep"], n - 1)  # one goes at least
    pruner = vtc.parse("sparsevlm", keep=keep, official=True)[0]
    tokens = tokens_of(hidden[:, visual], keep, source, stage="decoder", layer=meta["layer"] + 1)
    raters = pruner.raters(tokens)[0].nonzero()[:, 0] - system
    assert raters.tolist() == vector["rater_idx"].tolist()
    np.testing.assert_allclose(pruner.score(tokens, pruner.rows(tokens))[0], vector["score"], atol=1e-6)

    split = pruner.split(tokens)
    kept, clusters = int(split.kept), int(split.clusters)
    assert (kept, clusters) == (len(vector["kept_sorted"]), int(vector["cluster_num"]))
    recycled = split.order[0, kept : kept + int(split.recycled)]
    assert sorted(recycled.tolist()) == sorted(vector["recycled_idx"].tolist())

    found = pruner.select(tokens, keep)
    assert isinstance(found, Merged)
    index = found.index[0][found.index[0] >= 0]
    assert len(index) == kept + clusters
    assert sorted(index[:kept].tolist()) == vector["kept_sorted"].tolist()
    merged = found.features[0, kept : kept + clusters]
    np.testing.assert_allclose(merged.norm(dim=-1), vector["merged_rownorm"], atol=1e-4)
    np.testing.assert_allclose(merged[:, :8], vector["merged_first8"], atol=1e-4)
