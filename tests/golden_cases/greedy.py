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
from vtc.pruners.todre import PIVOT


@golden("divprune")
def divprune(vector: Golden) -> None:
    meta = vector.meta
    if "x" in meta:
        x, order = vector.input("x"), vector["order"]
    else:
        x, order = vector.rng().standard_normal((meta["n"], meta["d"]), dtype=np.float32), vector["selected_order"]
    pruner = vtc.parse("divprune", keep=meta["ratio"])[0]
    k, asked = len(order), meta["ratio"] * meta["n"]
    assert k == meta.get("k", round(asked)) == round(asked)
    if asked % 1 != 0.5:  # theirs rounds halves to even, ours up
        assert k == vtc.pruners.base.resolve_keep(pruner.keep, meta["n"])
    assert pruner.select(tokens_of(x, k), k)[0].tolist() == order.tolist()


@golden("idpruner")
def idpruner(vector: Golden) -> None:
    meta = vector.meta
    w = torch.from_numpy(vector.input("w"))[None, None]
    pruner = vtc.parse("idpruner", importance="cls", lam=meta["lam"], parallel=meta["parallel_k"])[0]
    k = len(vector["order"])
    assert k == meta.get("k", k) == max(1, round(meta["n"] * (1 - meta["ratio"])))
    tokens = tokens_of(vector.input("x"), k, Served({EncoderAttention(): w}))
    found = pruner.select(tokens, k)[0].tolist()
    if meta["parallel_k"] == 1:
        assert found == vector["order"].tolist()
    assert sorted(found) == sorted(vector["order"].tolist())


@golden("zoo")
def zoo(vector: Golden) -> None:
    meta = vector.meta
    given = {name: recipe(text) for name, text in (part.split("=", 1) for part in meta["inputs"].split("; "))}
    first, second = nn.Linear(meta["d"], meta["d_l"]), nn.Linear(meta["d_l"], meta["d_l"])
    for layer, weight, bias in ((first, "W1", "b1"), (second, "W2", "b2")):
        layer.weight.data, layer.bias.data = given[weight], given[bias]
    projector = nn.Sequential(first, nn.GELU(), second)
    for name, value in given.items():
        digest = hashlib.sha256(value.numpy().tobytes()).hexdigest()
        assert digest == meta.get(f"sha_{name}", digest), f"{name}: other bytes"
    x = given["x"]
    with torch.no_grad():
        z = projector(x)
    pruner = vtc.parse("zoo_prune", directions=meta["m"], step=meta["h"])[0]
    pruner.draw = lambda width: given["U"]
    tokens = tokens_of(z, meta["k"], Served({PreProjector(): x[None, :, None]}, given_projector=projector))
    np.testing.assert_allclose(pruner.sensitivity(tokens)[0], vector["sensitivity"], rtol=5e-4)
    found = pruner.select(tokens, meta["k"])[0].tolist()
    assert sorted(found) == vector["kept"].tolist()
    if "order" in vector.arrays:
        assert found == vector["order"].tolist()


def recipe(text: str) -> Tensor:
    """A recipe whose arguments may be simple arithmetic, such as ``scale=1/sqrt(32)``."""
    call = ast.parse(text.strip(), mode="eval").body
    for keyword in call.keywords:
        source = ast.unparse(keyword.value)
        assert set(source) <= set("0123456789./sqrt()*- "), source
        keyword.value = ast.Constant(eval(source, {"__builtins__": {}, "sqrt": math.sqrt}))
    return torch.from_numpy(call_recipe(ast.unparse(call)))


@golden("zoo_sads*", "zoo_multi*")
def zoo_sads(vector: Golden) -> None:
    """With frame labels the authors choose inside every picture of the span; newline tokens have one below 0."""
    x, sensitivity = (torch.from_numpy(vector.input(name)) for name in ("x", "sens"))
    label = next((a.ravel() for name, a in vector.arrays.items() if "label" in name), np.zeros(len(x), dtype=np.int64))
    order = [i for i in vector["order"].tolist() if label[i] >= 0]
    layout = pictures(label)
    assert np.array_equal(label < 0, layout.newline.numpy())
    ids = np.flatnonzero(label >= 0)
    theirs, ours = (np.unique(part[ids], return_inverse=True)[1] for part in (label, layout.parts()))
    assert np.array_equal(theirs, ours), "our crops are theirs"
    tokens = replace(tokens_of(x[ids], len(order), layouts=[layout]), ids=torch.from_numpy(ids)[None])
    pruner = vtc.parse("zoo_prune")[0]
    pruner.sensitivity = lambda tokens: sensitivity[tokens.ids]
    assert ids[pruner.select(tokens, len(order))[0].numpy()].tolist() == order


def pictures(label: np.ndarray) -> Layout:
    """What has these labels: a whole image (0), then a mosaic of crops with a newline (< 0) behind rows, or frames."""
    first = int((label == 0).cumprod().sum())
    grids, rest = [Grid(1, first, "base")], label[first:]
    if (rest < 0).any():
        rows = rest.reshape(-1, int((rest < 0).argmax()) + 1)[:, :-1]
        cuts = tuple(tuple((np.flatnonzero(np.diff(line)) + 1).tolist()) for line in (rows[:, 0], rows[0]))
        grids.append(Grid(*rows.shape, "mosaic", "row", cuts))
    else:
        grids += [Grid(1, len(run), "frame") for run in np.split(rest, np.flatnonzero(np.diff(rest)) + 1)]
    return Layout(tuple(grid for grid in grids if grid.tokens))


@golden("todre_paper")
def todre(vector: Golden) -> None:
    meta = vector.meta
    attention = torch.from_numpy(vector.input("cls_attn"))[None, None]
    for objective in ("maxsum", "kcenter"):
        pruner = vtc.parse("todre_diversity", objective=objective)[0]
        tokens = tokens_of(vector.input("x"), meta["k"], Served({PIVOT: attention}))
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
