"""Vectors of the greedy methods: DivPrune, IDPruner, ZOO-Prune, ToDRE and CDPruner."""

from __future__ import annotations

import ast
import hashlib
import math
from dataclasses import replace
from unittest import mock

import numpy as np
import torch
from golden_support import Golden, Served, call_recipe, golden, tokens_of
from torch import Tensor, nn
from torch.nn.functional import normalize

import vtc
from vtc.pruners import cdpruner
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import EncoderAttention, EncoderFeatures, PreProjector


@golden("divprune")
def divprune(vector: Golden) -> None:
    meta = vector.meta
    if "x" in meta:
        x, order = vector.input("x"), vector["order"]
    else:
        x, order = vector.rng().standard_normal((meta["n"], meta["d"]), dtype=np.float32), vector["selected_order"]
    pruner = vtc.parse("divprune", keep=meta["ratio"])[0]
    k = len(order)
    assert k == meta.get("k", round(meta["ratio"] * meta["n"])) == vtc.pruners.base.resolve_keep(pruner.keep, meta["n"])
    assert pruner.select(tokens_of(x, k), k)[0].tolist() == order.tolist()


@golden("idpruner")
def idpruner(vector: Golden) -> None:
    meta = vector.meta
    w = torch.from_numpy(vector.input("w"))[None, None]
    pruner = vtc.parse("idpruner", importance="cls", lam=meta["lam"], parallel=meta["parallel_k"])[0]
    k = len(vector["order"])
    assert k == meta.get("k", k) == round(meta["n"] * (1 - meta["ratio"]))
    tokens = tokens_of(vector.input("x"), k, Served({EncoderAttention(): w}))
    found = pruner.select(tokens, k)[0].tolist()
    if meta["parallel_k"] == 1:
        assert found == vector["order"].tolist()
    assert sorted(found) == vector["kept"].tolist() == sorted(vector["order"].tolist())


@golden("zoo")
def zoo(vector: Golden) -> None:
    meta = vector.meta
    given = {name: recipe(text) for name, text in (part.split("=", 1) for part in meta["inputs"].split("; "))}
    first, second = nn.Linear(meta["d"], meta["d_l"]), nn.Linear(meta["d_l"], meta["d_l"])
    for layer, weight, bias in ((first, "W1", "b1"), (second, "W2", "b2")):
        layer.weight.data, layer.bias.data = given[weight], given[bias]
    projector = nn.Sequential(first, nn.GELU(), second)
    for name in ("x", "U", "W1", "W2"):
        assert hashlib.sha256(given[name].numpy().tobytes()).hexdigest() == meta[f"sha_{name}"], f"{name}: other bytes"
    x = given["x"]
    with torch.no_grad():
        z = projector(x)
    pruner = vtc.parse("zoo_prune", directions=meta["m"], step=meta["h"])[0]
    pruner.draw = lambda width: given["U"]
    tokens = tokens_of(z, meta["k"], Served({PreProjector(): x[None, :, None]}, given_projector=projector))
    np.testing.assert_allclose(pruner.sensitivity(tokens)[0], vector["sensitivity"], rtol=5e-4)
    found = pruner.select(tokens, meta["k"])[0].tolist()
    assert sorted(found) == vector["kept"].tolist()
    assert found == vector["order"].tolist()


def recipe(text: str) -> Tensor:
    """A recipe whose arguments may be simple arithmetic, such as ``scale=1/sqrt(32)``."""
    call = ast.parse(text.strip(), mode="eval").body
    for keyword in call.keywords:
        source = ast.unparse(keyword.value)
        assert set(source) <= set("0123456789./sqrt()*- "), source
        keyword.value = ast.Constant(eval(source, {"__builtins__": {}, "sqrt": math.sqrt}))
    return torch.from_numpy(call_recipe(ast.unparse(call)))


@golden("zoo_sads", "zoo_sads_multiframe", "zoo_sads_multi_frames", "zoo_sads_multi", "zoo_multiframe")
def zoo_sads(vector: Golden) -> None:
    x, sensitivity = (torch.from_numpy(vector.input(name)) for name in ("x", "sens"))
    order = vector["order"]
    pruner = vtc.parse("zoo_prune")[0]
    tokens = tokens_of(x, len(order))
    ids = torch.arange(len(x))
    if "frame_label" in vector.arrays:
        label = torch.from_numpy(vector["frame_label"])
        layout = mosaic(label.tolist())
        parts = torch.from_numpy(layout.parts())
        assert torch.equal(label < 0, layout.newline)
        assert torch.equal(parts[label >= 0], label[label >= 0].to(parts.dtype)), "our crops are theirs"
        ids = ids[label >= 0]
        tokens = tokens_of(x[ids], len(order), layouts=[layout])
        tokens = replace(tokens, ids=ids[None])
    pruner.sensitivity = lambda tokens: sensitivity[ids][None]
    found = ids[pruner.select(tokens, len(order))[0]].tolist()
    assert found == order.tolist()
    if "kept" in vector.arrays:
        assert sorted(found) == vector["kept"].tolist()


def mosaic(label: list[int]) -> Layout:
    """A whole image (label 0) and an even mosaic of crops (1 ..) with a newline (< 0) behind every row."""
    side = math.isqrt(label.count(0))
    rest = label[side**2 :]
    width = next(i for i, value in enumerate(rest) if value < 0)
    rows = len(rest) // (width + 1)
    cuts = tuple(tuple(range(side, size, side)) for size in (rows, width))
    return Layout((Grid(side, side, "base"), Grid(rows, width, "mosaic", "row", cuts)))


@golden("todre_paper")
def todre(vector: Golden) -> None:
    meta = vector.meta
    attention = torch.from_numpy(vector.input("cls_attn"))[None, None]
    for objective in ("maxsum", "kcenter"):
        pruner = vtc.parse("todre_diversity", objective=objective)[0]
        tokens = tokens_of(vector.input("x"), meta["k"], Served({EncoderAttention(layer=-1): attention}))
        found = pruner.select(tokens, meta["k"])[0].tolist()
        assert found[0] == meta["pivot"]
        assert found == vector[f"order_{objective}"].tolist()
        assert sorted(found) == vector[f"kept_{objective}"].tolist()


class Given:
    """A text encoder whose embeddings are given, not computed."""

    def __init__(self, text: Tensor):
        self.embedded = normalize(text, dim=-1).mean(0, keepdim=True)

    def text(self, texts: list[str]) -> Tensor:
        return self.embedded

    def patches(self, x: Tensor) -> Tensor:
        return normalize(x, dim=-1)


@golden("cdpruner")
def cdprune(vector: Golden) -> None:
    """The authors' batch is one sample's views, and the text's rows are the segments of its question."""
    meta, rng = vector.meta, vector.rng()
    batch, n, k = meta["batch"], meta["n"], meta["keep"]
    features = rng.standard_normal((batch, n, meta["d"]), dtype=np.float32)
    images = torch.from_numpy(rng.standard_normal((batch, n, meta["d_clip"]), dtype=np.float32))
    text = torch.from_numpy(rng.standard_normal((batch, meta["d_clip"]), dtype=np.float32))
    pruner = vtc.parse("cdpruner(text_encoder=given, official=True)")[0]
    tokens = tokens_of(features, k, Served({EncoderFeatures(): images[:, :, None]}, asked=["?"]))
    tokens = replace(tokens, sample=torch.zeros(batch, dtype=torch.long))
    with mock.patch.object(cdpruner, "clip_text", return_value=Given(text)):
        np.testing.assert_allclose(pruner.score(tokens), vector["relevance"], atol=1e-5)
        found = pruner.select(tokens, k)
    assert found.sort(1).values.tolist() == vector["kept_sorted"].tolist()
