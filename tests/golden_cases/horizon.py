"""The information horizon's vectors: window map, information per window, and the random draw."""

from __future__ import annotations

import re

import numpy as np
import torch
from golden_support import Golden, call_recipe, golden, tokens_of

import vtc
from vtc.eval.inspect.horizon import grid_windows, information
from vtc.pruners.primitives.ranking import top_k


@golden("horizon")
def check(vector: Golden) -> None:
    meta = vector.meta
    across, down, corner = vector["windows"].shape
    size = round(corner**0.5)
    windows = grid_windows(down * size, across * size, size)
    for x in range(across):
        for y in range(down):
            assert windows[y][x] == vector["windows"][x, y].tolist()

    calls = re.findall(r"normal\([^)]*\)", meta["logits"])
    logits, text = (torch.from_numpy(call_recipe(call)) for call in calls)  # logits[x - 1, y - 1]
    p, info = information(logits, text, meta["gt"])
    np.testing.assert_allclose(p, vector["p_window"], atol=1e-6)
    np.testing.assert_allclose(info, vector["info"], atol=1e-6)
    assert abs(float((p - info)[0, 0]) - meta["p_text"]) < 1e-6

    n = across * down * corner
    flat = [windows[y][x] for x in range(across) for y in range(down)]
    score = torch.empty(n)
    for window, value in zip(flat, p.flatten(), strict=True):  # each token's score is its window's
        score[window] = value
    np.testing.assert_allclose(score, vector[f"score{n}"], atol=1e-6)
    for name, expected in vector.arrays.items():
        if found := re.fullmatch(r"keep(\d+)", name):
            assert top_k(score[None], int(found[1]))[0].sort().values.tolist() == sorted(expected.tolist()), name
        if found := re.fullmatch(r"random_sample_seed(\d+)_(\d+)_(\d+)", name):
            seed, total, k = map(int, found.groups())
            pruner = vtc.parse("random", keep=k, layer=20, seed=seed, official=True)[0]
            tokens = tokens_of(np.zeros((total, 1), np.float32), k, stage="decoder", layer=20)
            assert pruner.select(tokens, k)[0].tolist() == expected.tolist(), name
