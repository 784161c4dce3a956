"""Vectors of the video methods EVS, DyCoke, VidCom2, FastVID and HoliTom."""

from __future__ import annotations

import re

import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of

import vtc
from vtc.pruners.base import Merged
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.primitives.crops_and_frames import frames_of
from vtc.pruners.signals import EncoderAttention


def video(frames: int, rows: int, cols: int) -> list[Layout]:
    return [Layout((Grid(rows, cols, "frame"),) * frames)]


@golden("evs")
def evs(vector: Golden) -> None:
    meta, draw = vector.meta, vector.draws()
    frames, (rows, cols), d = meta["frames"], meta["grid"], meta["d"]
    x = draw(1, rows * cols, d) + draw(frames, rows * cols, d)
    tokens = tokens_of(x.reshape(-1, d), len(vector["kept_flat_sorted"]), layouts=video(frames, rows, cols))
    for official in (True, False):
        pruner = vtc.parse("evs", keep=1 - meta["q"], official=official)[0]
        kept = pruner.select(tokens, tokens.budgets[0])[0]
        assert sorted(kept[kept >= 0].tolist()) == vector["kept_flat_sorted"].tolist()


@golden("dycoke")
def dycoke(vector: Golden) -> None:
    meta, draw = vector.meta, vector.draws()
    x = draw(1, meta["n"], meta["d"]) + draw(meta["frames"], meta["n"], meta["d"])
    tokens = tokens_of(x.reshape(-1, meta["d"]), 1, layouts=video(meta["frames"], 1, meta["n"]))
    kept = vtc.parse("dycoke", official=True, ratio=meta["k"])[0].select(tokens, 1)[0]
    assert kept[kept >= 0].tolist() == vector["kept_in_output_order"].tolist()


@golden("vidcom2")
def vidcom2(vector: Golden) -> None:
    meta, draw = vector.meta, vector.draws()
    frames, n, d = meta["frames"], meta["n"], meta["d"]
    x = draw(1, n, d) + draw(frames, n, d) + draw(frames, 1, d)
    expected = vector["kept_flat"].tolist()
    tokens = tokens_of(x.reshape(-1, d), len(expected), layouts=video(frames, 1, n))
    official = vtc.parse("vidcom2", keep=meta["ratio"], official=True)[0]
    scores = official.scores(tokens, frames_of(tokens))
    np.testing.assert_allclose(official.shares(tokens, scores)[0], vector["scales"], atol=1e-5)
    np.testing.assert_allclose(scores.video.view(frames, n), vector["video_score"], atol=1e-5)
    np.testing.assert_allclose(scores.frame.view(frames, n), vector["frame_score"], atol=1e-5)
    kept = official.select(tokens, len(expected))[0]
    assert kept[kept >= 0].tolist() == expected


@golden("fastvid")
def fastvid(vector: Golden) -> None:
    meta, draw = vector.meta, vector.draws()
    frames, n, d, system = meta["frames"], meta["n"], meta["d"], meta["system"]
    hidden = draw(1, system + frames * n + meta["text"], d)
    attention = torch.from_numpy(draw(frames, n)).softmax(-1)
    whole = draw(frames, d)
    scene, step = re.search(r"i%(\d+)!=0: gf\[i\]=gf\[i-1\]\+([\d.]+)\*gf\[i\]", meta["recipe"]).groups()
    for i in range(1, frames):
        if i % int(scene):
            whole[i] = whole[i - 1] + np.float32(step) * whole[i]
    numbers = {"segments": meta["c"], "threshold": meta["tau"], "context": meta["d_ratio"], "every": meta["p"]}
    pruner = vtc.parse("fastvid", keep=meta["ratio"], weight=meta["beta"], official=True, **numbers)[0]
    # a frame's global feature is the mean over its tokens: every token gets it
    read = torch.from_numpy(whole).repeat_interleave(n, 0)[None, :, None]
    source = Served(dict(zip(pruner.signals, (attention.flatten()[None, None], read), strict=True)))
    visual = torch.from_numpy(hidden[:, system : system + frames * n])
    tokens = tokens_of(visual, round(meta["ratio"] * frames * n), source, video(frames, 1, n))

    found = pruner.select(tokens, tokens.budgets[0])
    kept = found.index[0][found.index[0] >= 0]
    text = [i for i in range(hidden.shape[1]) if not system <= i < system + frames * n]
    assert sorted([*text, *(kept + system).tolist()]) == vector["keep_positions"].tolist()
    where = frames_of(tokens)
    segment, _ = pruner.plan(pruner.similarities(tokens, where), torch.zeros(1, frames, dtype=torch.long), where)
    assert segment[0].bincount().tolist() == vector["segment_sizes"].tolist()
    out = torch.from_numpy(hidden[0].copy())
    out[kept + system] = found.features[0, : len(kept)]
    rows = out[torch.from_numpy(vector["keep_positions"]).long()]
    np.testing.assert_allclose(rows.norm(dim=-1), vector["out_rownorm"], atol=1e-3)
    np.testing.assert_allclose(rows[:, :8], vector["out_first8"], atol=1e-3)


def noisy_pictures(meta: dict, r: np.random.Generator) -> np.ndarray:
    """Frames of one picture after another, some of whose places are noisier."""
    frames, n, d = meta["frames"], meta["n"], meta["d"]
    pictures = r.standard_normal((len(meta["cuts"]) + 1, n, d), dtype=np.float32)
    noise = r.standard_normal((frames, n, d), dtype=np.float32)
    size = r.random((1, n, 1), dtype=np.float32)
    return pictures[np.searchsorted(meta["cuts"], np.arange(frames), "right")] + np.float32(0.8) * size * noise


def same_vectors(found: Merged, expected: np.ndarray) -> None:
    """The authors give vectors in another order, what repeats before what moves: compared in sorted order."""
    made = found.features[0][found.index[0] >= 0].numpy()
    assert made.shape == expected.shape
    rows = [rows[np.lexsort(rows.T[::-1])] for rows in (made, expected)]
    np.testing.assert_allclose(*rows, atol=1e-5)


@golden("holitom")
def holitom(vector: Golden) -> None:
    meta, r = vector.meta, vector.rng()
    frames, n = meta["frames"], meta["n"]
    x = noisy_pictures(meta, r)
    attention = torch.from_numpy(r.random((frames, n), dtype=np.float32)).view(1, 1, -1)
    given = {"tau": meta["tau"], "beta": meta["beta"], "neighbours": meta["k"]}
    pruner = vtc.parse("holitom", keep=meta["ratio"], official=True, **given)[0]
    budget = round(meta["ratio"] * frames * n)
    tokens = tokens_of(x.reshape(frames * n, -1), budget, Served({EncoderAttention(): attention}), video(frames, 1, n))
    same_vectors(pruner.select(tokens, budget), vector["features"])
