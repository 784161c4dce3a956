"""Zero-TPrune's vectors, made from the specification."""

from __future__ import annotations

import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of

import vtc
from vtc.pruners.primitives.page_rank import head_variance, over_heads, page_rank
from vtc.pruners.zero_tprune import (
    KEYS,
    METRIC,
    QUERIES,
    SEGMENTS,
    SPECIAL_KEYS,
    SPECIAL_QUERIES,
    Graph,
)


@golden("zerotprune")
def zero_tprune(vector: Golden) -> None:
    """The graph is given as logits: queries against unit keys. What is chosen counts patches, from 0."""
    meta = vector.meta
    heads, length, s_prune = meta["heads"], meta["length"], meta["s_prune"]
    draw = vector.draws()
    logits, keys = (torch.from_numpy(draw(*shape)) for shape in ((heads, length, length), (length, meta["d_key"])))
    attention, everyone = logits.softmax(-1), torch.ones(1, length, dtype=torch.bool)
    # the vector does not say how often they voted here: as often as in the last stage
    rank = page_rank([attention], torch.full((heads, length), 1 / length), meta["votes"])
    np.testing.assert_allclose(rank, vector["wpr_uniform_s"], atol=1e-6)

    patches, keep = length - 1, meta["keep"]
    queries = logits.transpose(0, 1).flatten(1)
    units = (length**0.5 * torch.eye(length)).repeat(1, heads)
    metric = torch.nn.functional.pad(keys, (0, length - meta["d_key"]))  # as wide as a head, of the same cosines
    reads = {
        QUERIES: queries[None, 1:, None], KEYS: units[None, 1:, None], METRIC: metric[None, 1:, None],
        SPECIAL_QUERIES: queries[None, None, :1], SPECIAL_KEYS: units[None, None, :1],
        SEGMENTS: torch.zeros(1, patches, 1, 1, dtype=torch.long),
    }  # fmt: skip
    tokens = tokens_of(np.zeros((patches, 1), np.float32), keep, Served(reads), stage="vision", layer=1)
    graph = Graph.read(tokens, length)
    start = torch.ones(length)
    start[0] = length**0.5
    voted = page_rank([attention], (start / start.sum()).expand(heads, -1), 1)[None]
    np.testing.assert_allclose(head_variance(voted, everyone)[0], vector["head_var_I1"], rtol=1e-4)
    np.testing.assert_allclose(over_heads(voted, everyone)[0], vector["importance_I1"], atol=1e-7)
    importance = graph.importance(tokens.valid, 1, False)
    np.testing.assert_allclose(importance[0], vector["importance_I1"][1:], atol=1e-7)

    pruner = vtc.parse("zero_tprune", keep=keep, votes=meta["votes"], similar=s_prune / (patches - keep))[0]
    left = tokens.valid.clone()
    left[0, torch.from_numpy(vector["s_pruned_sorted"].astype(np.int64))] = False
    assert int((~left).sum()) == s_prune
    last = graph.importance(left, meta["votes"], False)[left]
    np.testing.assert_allclose(last, vector["importance_I"][1:], atol=1e-6)
    assert pruner.select(tokens, keep)[0].sort().values.tolist() == vector["final_kept_sorted"].tolist()
