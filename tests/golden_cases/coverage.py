"""Vectors of the methods on coverage: SCOPE and MMTok."""

from __future__ import annotations

import torch
from golden_support import Golden, Served, golden, tokens_of

import vtc
from vtc.pruners.signals import EncoderAttention, PreProjector, TextEmbeddings


@golden("scope")
def scope(vector: Golden) -> None:
    attention = torch.from_numpy(vector.input("w"))[None, None]
    order = vector["order"]
    for space in ("encoder", "projected"):  # theirs knows one kind of tokens
        pruner = vtc.parse("scope", alpha=vector.meta["alpha"], space=space)[0]
        seen = torch.from_numpy(vector.input("x"))[None, :, None]
        source = Served({EncoderAttention(): attention, PreProjector(): seen})
        tokens = tokens_of(vector.input("x"), len(order), source)
        assert pruner.select(tokens, len(order))[0].tolist() == order.tolist()


@golden("mmtok")
def mmtok(vector: Golden) -> None:
    meta, kept = vector.meta, vector["kept"]
    temperatures = {"text_temperature": meta["tv_temp"], "vision_temperature": meta["vv_temp"]}
    pruner = vtc.parse("mmtok", alpha=meta["alpha"], **temperatures)[0]
    seen, words = (torch.from_numpy(vector.input(name))[None] for name in ("v", "z"))
    source = Served({PreProjector(): seen[:, :, None]}, {TextEmbeddings(): words})
    tokens = tokens_of(vector.input("x"), len(kept), source)
    assert sorted(pruner.select(tokens, len(kept))[0].tolist()) == kept.tolist()
