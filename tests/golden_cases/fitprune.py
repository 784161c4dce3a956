"""FitPrune's vectors: maps of attention, what the authors keep by them, and what goes within a bound."""

from __future__ import annotations

import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of
from torch import Tensor

import vtc
from vtc.eval.schedules.within_a_bound import Within
from vtc.pruners.fitprune import BY_PICTURE, BY_TEXT
from vtc.pruners.signals import TextEmbeddings


def served(logits: np.ndarray, system: int, n: int) -> Served:
    """What a layer with these logits `[H, L, L]` would give of `n` visual tokens behind `system` columns."""
    future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    rows = torch.from_numpy(logits).masked_fill(future, float("-inf")).softmax(-1).amax(0)[None, None]
    rows, text = rows[..., system : system + n], logits.shape[-1] - system - n
    visual = rows[:, :, system : system + n].sum(2, keepdim=True)
    words = {TextEmbeddings(): torch.zeros(1, text, 1)}
    return Served({BY_PICTURE: visual, BY_TEXT: rows[:, :, system + n :]}, words)


def at(source: Served, n: int, keep: int):  # type: ignore[no-untyped-def]
    return tokens_of(np.zeros((n, 1), np.float32), keep, source, stage="decoder", layer=3)


@golden("fitprune")
def choice(vector: Golden) -> None:
    meta, draw = vector.meta, vector.draws()
    heads, system, n, keep = (meta[name] for name in ("heads", "system", "n", "keep"))
    length = system + n + meta["text"]
    tokens = at(served(draw(heads, length, length), system, n), n, keep)
    [pruner] = vtc.parse("fitprune", keep=keep)
    found = pruner.score(tokens)[0] / n  # theirs is a mean over the visual queries
    np.testing.assert_allclose(found, vector["score"], rtol=1e-5)
    assert sorted(pruner.select(tokens, keep)[0].tolist()) == vector["kept_sorted"].tolist()


@golden("fitprune_fit")
def fit(vector: Golden) -> None:
    meta, draw = vector.meta, vector.draws()
    heads, system, text = (meta[name] for name in ("heads", "system", "text"))

    def kept(n: int) -> Tensor:
        length = system + n + text
        return within.select(at(served(draw(heads, length, length), system, n), n, 1), 1)[0]

    within = Within()
    assert kept(meta["n"]).tolist() == list(range(meta["n"]))
    within.bound = meta["alpha"]
    found = kept(meta["left"])
    assert found[found >= 0].tolist() == vector["kept_sorted"].tolist()
