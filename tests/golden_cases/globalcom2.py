"""Vectors of GlobalCom2: pictures with crops, padded and not, and towers without a class token."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of
from transformers.models.llava_next.modeling_llava_next import unpad_image

import vtc
from vtc.pruners.globalcom2 import LOOKS
from vtc.pruners.layout import Grid, Layout


def sequence(kept: list[int], cells: np.ndarray, side: int) -> list[int]:
    """The authors' order: the j-th valid token of a crop is written to the crop's cell j; -1 ends every row.

    `cells` is the mosaic, crop * N + patch or -1 where padding was; `kept` are such numbers.
    """
    n, placed = side * side, np.full(cells.shape, -1)
    down, across = cells.shape[0] // side, cells.shape[1] // side
    for r, c in itertools.product(range(down), range(across)):
        crop = cells[r * side : (r + 1) * side, c * side : (c + 1) * side].flatten()
        valid = crop[crop >= 0]
        for j, cell in enumerate(valid):
            if cell in kept:
                placed[r * side + j // side, c * side + j % side] = cell
    assert set(placed[placed >= 0]) == set(kept)
    assert n == side * side
    return [int(x) for row in placed for x in (*row[row >= 0], -1)]


@golden("globalcom2")
def globalcom2(vector: Golden) -> None:
    meta = vector.meta
    n, side, (across, down) = meta["n"], meta["side"], meta["grid_wh"]
    draw = vector.draws()
    scores = [torch.from_numpy(draw(*shape)) for shape in ((n,), (meta["crops"], n))]
    base, crops = (x.softmax(-1) if meta["kind"] == "prob" else x for x in scores)
    # the mosaic as the model unpads it
    cells = torch.arange(down * across * n).view(down, across, side, side).transpose(1, 2).reshape(down * side, -1)
    width, height = meta["original_wh"]
    inner = unpad_image(cells[None], [height, width])[0]
    rows, cols = inner.shape
    cuts = [tuple(j * side - (c * side - left) // 2 for j in range(1, c)) for c, left in ((down, rows), (across, cols))]
    layout = Layout((Grid(side, side, "base"), Grid(rows, cols, "mosaic", cuts=(cuts[0], cuts[1]))))
    seen = torch.cat([base, crops.flatten()[inner.flatten()]])
    pruner = vtc.parse("globalcom2", keep=meta["ratio"], tau=meta["temperature"], official=True)[0]
    budget = round(meta["ratio"] * len(seen))
    source = Served({LOOKS: seen.expand(1, 2, -1)})
    tokens = tokens_of(np.zeros((len(seen), 1), np.float32), budget, source, [layout])
    kept = pruner.select(tokens, budget)[0]
    kept = kept[kept >= 0]
    assert sorted(kept[kept < n].tolist()) == sorted(vector["thumbnail_kept"].tolist())
    chosen = inner.flatten()[kept[kept >= n] - n].tolist()
    counts = np.bincount(np.array(chosen) // n, minlength=meta["crops"])
    assert counts.tolist() == vector["kept_per_crop"].tolist()
    whole = torch.full_like(cells, -1)
    top, left = (cells.shape[0] - rows) // 2, (cells.shape[1] - cols) // 2
    whole[top : top + rows, left : left + cols] = inner
    found = sequence(chosen, whole.numpy(), side)
    assert found == vector["crop_token_seq"].tolist()
    assert found.count(-1) == vector["n_newlines"]


@golden("globalcom2_negcos")
def negcos(vector: Golden) -> None:
    meta = vector.meta
    x = torch.from_numpy(vector.rng().standard_normal((meta["n"], meta["d"]), dtype=np.float32)) + 0.3
    keep = int(meta["ratio"] * meta["n"])
    pruner = vtc.parse("globalcom2", keep=keep, score="cosine")[0]
    kept = pruner.select(tokens_of(x, keep), keep)[0]
    assert sorted(kept.tolist()) == vector["kept_sorted"].tolist()
