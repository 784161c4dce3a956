"""HAWK's vectors: queries and keys of a layer, and what the authors make of them."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of

import vtc
from vtc.pruners.hawk import FORMAT, QWEN, QWEN_HEADS
from vtc.pruners.signals import TextEmbeddings


@golden("hawk")
def check(vector: Golden) -> None:
    meta, draw = vector.meta, vector.draws()
    heads, groups, text, n, width = (meta[name] for name in ("heads", "kv_heads", "text", "n", "width"))
    queries, keys = (torch.from_numpy(draw(h, t, width)) for h, t in ((heads, text), (groups, n)))
    weights = QWEN_HEADS if meta["weights"] == QWEN else meta["weights"]
    logits = (queries @ keys.repeat_interleave(heads // groups, 0).mT / width**0.5)[None]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "heads.json"
        file.write_text(json.dumps({"format": FORMAT, "weights": weights}))
        pruner = vtc.parse("hawk", keep=meta["keep"], weights=str(file))[0]
        source = Served({pruner.signals[0]: logits}, {TextEmbeddings(): torch.zeros(1, text, 1)})
        tokens = tokens_of(np.zeros((n, 1), np.float32), meta["keep"], source, stage="decoder", layer=0)
        found = pruner.score(tokens)[0]
        np.testing.assert_allclose(found / sum(weights), vector["score"], atol=1e-6)
        assert sorted(pruner.select(tokens, meta["keep"])[0].tolist()) == vector["kept_sorted"].tolist()
