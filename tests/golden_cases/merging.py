"""Vectors of the merging methods VisionZip, PruMerge and ToMe."""

from __future__ import annotations

import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of
from torch import Tensor

import vtc
from vtc.pruners.primitives.merge_rounds import bipartite_match, merged_cosine
from vtc.pruners.primitives.merging import combine, membership


def drawn(vector: Golden, *shapes: tuple[int, ...]) -> list[Tensor]:
    draw = vector.draws()
    return [torch.from_numpy(draw(*shape)) for shape in shapes]


def same_rows(rows: Tensor, vector: Golden, tolerance: float, skip: int = 0) -> None:
    """`rows` are the vector's output from its row `skip` on."""
    assert rows.shape[0] == len(vector["out_rownorm"]) - skip
    np.testing.assert_allclose(rows.norm(dim=-1), vector["out_rownorm"][skip:], atol=tolerance)
    np.testing.assert_allclose(rows[:, :8], vector["out_first8"][skip:], atol=tolerance)


@golden("visionzip")
def visionzip(vector: Golden) -> None:
    meta = vector.meta
    n, dominant, contextual = meta["n"], meta["dominant"], meta["contextual"]
    shapes = (meta["heads"], n + 1), (1, n + 1, meta["d"]), (1, n + 1, meta["d_metric"])
    logits, hidden, metric = drawn(vector, *shapes)
    attention, hidden, metric = logits.softmax(-1)[None, :, 1:], hidden[:, 1:], metric[:, 1:]
    pruner = vtc.parse("visionzip", keep=dominant + contextual, contextual=contextual)[0]
    source = Served(dict(zip(pruner.signals, (attention, metric[:, :, None], hidden[:, :, None]), strict=True)))
    found = pruner.select(tokens_of(hidden, pruner.keep, source), pruner.keep)
    assert found.index[0, :dominant].tolist() == vector["dominant_patch_sorted"].tolist()
    assert list(vector["out_shape"]) == [1, found.features.shape[1] + 1, meta["d"]], "and the class token"
    same_rows(found.features[0], vector, 1e-4, skip=1)
    np.testing.assert_allclose(found.features[0].sum(-1), vector["out_rowsum"][1:], atol=1e-4)


@golden("prumerge")
def prumerge(vector: Golden) -> None:
    """The authors' fixed PruMerge+ keeps twice what both lists name. That changes all sums: they aren't compared."""
    meta = vector.meta
    n, d = meta["n"], meta["d"]
    hidden, query, key = drawn(vector, *[(1, n + 1, d)] * 3)
    attention = (query @ key.transpose(1, 2) / d**0.5).softmax(-1)[:, :1, 1:]
    name = "prumerge_plus" if meta["function"].endswith("plus") else "prumerge"
    kind = {"adaptive": True} if meta["adaptive"] else {"official": True, "keep": meta["ratio"]}
    pruner = vtc.parse(name, **kind)[0]
    source = Served(dict(zip(pruner.signals, (attention, key[:, 1:, None], hidden[:, 1:, None]), strict=True)))
    tokens = tokens_of(hidden[:, 1:], n // 2, source)
    np.testing.assert_allclose(pruner.attention(tokens)[0], vector["cls_attn"], atol=1e-6)
    ratio = pruner.outliers(pruner.attention(tokens), tokens).item() if meta["adaptive"] else pruner.keep
    assert ratio == vector["ratio"]
    found = pruner.select(tokens, n // 2)
    kept = found.index[0][found.index[0] >= 0]
    order = vector["outlier_topk_order"]
    assert kept[: len(order)].tolist() == order.tolist()
    made = vector["out_first8"]
    twice = sum(bool((abs(made[:i] - made[i]) < 1e-3).all(1).any()) for i in range(1, len(made)))
    assert [1, len(kept) + twice, d] == list(vector["out_shape"])
    if not twice:
        same_rows(found.features[0, : len(kept)], vector, 1e-3)


@golden("tome")
def tome(vector: Golden) -> None:
    meta = vector.meta
    n, protect = meta["length"], int(meta["class_token"])
    r = min(meta["r"], (n - protect) // 2)
    x, metric = drawn(vector, (1, n, meta["d"]), (1, n, meta["d_metric"]))
    pruner = vtc.parse("tome", keep=n - r, metric="keys", r=r)[0]
    tokens = tokens_of(x, n - r, Served({pruner.signals[0]: metric[:, :, None]}))

    likeness = merged_cosine(metric, torch.arange(n)[None], n, torch.ones(1, n))
    match = bipartite_match(likeness, [r], tokens.valid, protect)
    edges, merged = match.edges[0], match.merged[0]
    stay = edges[~merged[edges]]
    stay = stay.sort().values if protect else stay  # the authors: unmerged tokens of A, then B
    order = torch.cat([2 * stay, torch.arange(1, n, 2)])
    slot = torch.empty(n, dtype=torch.long)
    slot[order] = torch.arange(n - r)
    slot[::2][merged] = slot[1::2][match.best[0][merged]]
    assert slot.tolist() == vector["slot_of_token"].tolist()
    inside = membership(slot[None], n - r, tokens.valid)
    size = inside.sum(2, keepdim=True)
    np.testing.assert_array_equal(size[0, :, 0], vector["size"])
    same_rows((combine(inside, x) / size)[0], vector, 1e-4)

    if not protect:
        found = pruner.select(tokens, n - r)
        assert found.index[0].tolist() == order.sort().values.tolist()
        same_rows(found.features[0][order.argsort().argsort()], vector, 1e-4)
