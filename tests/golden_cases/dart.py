"""DART's vectors: the authors' code for three models, and AngelSlim's version."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of

import vtc
from vtc.pruners.base import resolve_keep
from vtc.pruners.signals import DecoderHidden, DecoderKeys, Projected, TextEmbeddings
from vtc.pruners.visual_tokens import VisualTokens

NEXT_MAXIMUM = 320


def given(vector: Golden, keep: int) -> tuple[VisualTokens, slice]:
    """Tokens with their keys and states, text on both sides."""
    n, start = vector.meta["n"], vector.meta["start"]
    state = torch.from_numpy(vector.input("state"))
    keys = torch.from_numpy(vector.input("keys")).transpose(0, 1).flatten(1)
    visual = slice(start, start + n)
    is_text = torch.ones(len(state), dtype=torch.bool)
    is_text[visual] = False
    source = Served(
        {DecoderKeys(): keys[None, visual], Projected(): state[None, visual]},
        {
            DecoderKeys(): keys[None, is_text],
            DecoderHidden(): state[None, is_text],
            TextEmbeddings(): state[None, is_text],
        },
        behind=(torch.arange(len(state)) >= start + n)[None, is_text],
    )
    return tokens_of(state[visual], keep, source, stage="decoder", layer=2), visual


def keep_of(meta: dict[str, Any]) -> int | float:
    """What the authors' configuration asks of us."""
    cfg = meta["cfg"]
    if "next" in meta["which"] or meta.get("text_length") is not None:
        named = [v for k, v in cfg.items() if "next" in k and isinstance(v, int)]
        return named[0] if named else NEXT_MAXIMUM
    if "qwen" not in meta["which"] and cfg.get("max_num_trunction") is not None:
        return cfg["max_num_trunction"]
    return 1 - cfg["reduction_ratio"]


@golden("dart")
def check(vector: Golden) -> None:
    meta = vector.meta
    keep = keep_of(meta)
    pruner = vtc.parse("dart", keep=keep, official=True)[0]
    budget = resolve_keep(keep, meta["n"])
    tokens, visual = given(vector, budget)
    found = pruner.find_pivots(tokens, tokens.features)
    positions = pruner.positions(tokens, found)[0]
    assert positions.tolist() == [*vector["pivot_image"], *vector["pivot_text"]]
    assert positions[pruner.visit_order(tokens, found)[0]].tolist() == vector["pivot_visit_order"].tolist()
    kept = pruner.select(tokens, budget)[0]
    assert (visual.start + kept[kept >= 0]).tolist() == vector["kept_abs"].tolist()
    if "kept_abs_normorder_NOT_official" in vector.arrays:  # the default, asked for the official count
        exact = vtc.parse("dart", keep=len(vector["kept_abs"]))[0]
        tokens, _ = given(vector, exact.keep)
        kept = np.sort(exact.select(tokens, exact.keep)[0])
        assert (visual.start + kept).tolist() == np.sort(vector["kept_abs_normorder_NOT_official"]).tolist()


@golden("dart_angelslim")
def check_angelslim(vector: Golden) -> None:
    meta = vector.meta
    k = round(meta["n"] * (1 - meta["ratio"]))
    assert k == meta.get("k", k) == len(vector["kept_abs"])
    tokens, visual = given(vector, k)
    kept = vtc.parse("dart", keep=k, layer=1, variant="angelslim")[0].select(tokens, k)[0]
    assert sorted((visual.start + kept).tolist()) == np.sort(vector["kept_abs"]).tolist()
