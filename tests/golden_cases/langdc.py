"""LangDC's vectors: pooled video tokens, the captioner's input, its light projector, and the length rule."""

from __future__ import annotations

from typing import Any

import golden_trained_draws as draws
import numpy as np
import torch
from golden_support import Golden, golden
from torch import Tensor

from vtc.pruners.trained.captions import (
    LightProjector,
    Projector,
    caption_lengths,
    caption_states,
    captioner_input,
    pooled_video,
)

SLOTS = 4
END, PAD = 151645, 151643
BEFORE, BEHIND = [5, 6, 7], [8, 9]


def projector(weights: list[np.ndarray]) -> Projector:
    found = Projector(weights[0].shape[1], weights[0].shape[0])
    _load(found, weights)
    return found


def _load(into: Projector, weights: list[np.ndarray]) -> None:
    for p, w in zip(into.parameters(), weights, strict=True):
        p.data = torch.from_numpy(w)


def same(found: Tensor, vector: Golden, every: int = 1) -> None:
    if "shape" in vector.arrays:
        assert found.numel() == vector["shape"].prod()
    rows = found.reshape(-1, found.shape[-1])[::every]
    for name, x in (("out_first8", rows[:, :8]), ("out_rownorm", rows.norm(dim=-1))):
        np.testing.assert_allclose(x, vector[name], rtol=0, atol=1e-4 * np.abs(vector[name]).max())


@golden("LangDC")
@torch.no_grad()
def check(vector: Golden) -> None:
    meta = vector.meta
    if "end_step" in meta:
        check_lengths(vector)
    elif "LDPv2" in meta["part"]:
        check_light(vector)
    else:
        check_video(vector)


def check_video(vector: Golden) -> None:
    meta = vector.meta
    seed, segments, width = meta["seed"], meta["segments"], meta.get("llm_width", meta.get("cap_width"))
    r = np.random.default_rng(seed)
    video = draws.normal(r, segments, 1024, meta["video_width"])
    frames = draws.normal(r, SLOTS * segments, 576, meta["image_width"])
    of_video = draws.mlp2(np.random.default_rng(seed + 1), meta["video_width"], width)
    of_image = draws.mlp2(np.random.default_rng(seed + 2), meta["image_width"], width)
    assert draws.sha(video, frames, *of_video, *of_image) == meta["sha"]
    given = projector(of_image)(torch.from_numpy(frames)), projector(of_video)(torch.from_numpy(video)), SLOTS
    if "llm_width" in meta:
        found = pooled_video(*given)
        assert len(found) == vector["tokens"]
        same(found, vector)
    else:
        same(captioner_input(*given), vector, every=16)


def check_light(vector: Golden) -> None:
    meta = vector.meta
    r, width = np.random.default_rng(meta["seed"]), meta["llm_width"]
    weights = draws.mlp2(r, meta["image_width"], width)
    near = draws.normal(r, width, 1, 3, 3, scale=1 / 3), draws.bias(r, width)
    x = draws.normal(np.random.default_rng(meta["seed"] + 1), meta["batch"], meta["tokens"], meta["image_width"])
    assert draws.sha(x, *near, *weights) == meta["sha"]
    module = LightProjector(meta["image_width"], width)
    _load(module.project, weights)
    module.near.weight.data, module.near.bias.data = map(torch.from_numpy, near)
    same(module(torch.from_numpy(x)), vector)


def drawn(meta: dict[str, Any]) -> tuple[Tensor, Tensor, list[np.ndarray], Tensor, Tensor]:
    """States by layer, ids, the projector behind the captioner, word embeddings, and the pooled tokens."""
    segments, steps, seed = meta["segments"], meta["steps"], meta["seed"]
    r = np.random.default_rng(seed)
    states = draws.normal(r, meta["hidden_layers"] + 1, segments, steps, meta["cap_width"])
    ids = r.integers(0, 1000, (segments, steps))
    for row, end in zip(ids, meta["end_step"], strict=True):
        row[end : end + 1], row[end + 1 :] = END, PAD
    post = draws.mlp2(np.random.default_rng(seed + 1), meta["cap_width"], meta["llm_width"])
    words = draws.normal(np.random.default_rng(seed + 2), 40, meta["llm_width"])
    pooled = draws.normal(np.random.default_rng(seed + 3), 1, 6, meta["llm_width"])
    assert draws.sha(states, ids, *post) == meta["sha"]
    return torch.from_numpy(states), torch.from_numpy(ids), post, torch.from_numpy(words), torch.from_numpy(pooled)


def check_lengths(vector: Golden) -> None:
    meta = vector.meta
    states, ids, post, words, pooled = drawn(meta)
    dual = "dual" in meta["part"]
    steps, layer = ids.shape[1], "embedding" if dual else meta["hidden_state_layer"]
    lengths = caption_lengths(ids, END, PAD) if dual else [steps] * len(ids)
    captions = projector(post)(caption_states(list(states), lengths, layer))
    found = torch.cat([words[BEFORE], *([pooled[0]] if dual else []), captions, words[BEHIND]])
    same(found, vector)
    real = torch.ones(len(found), dtype=torch.bool)
    if not dual:  # everything stays, and a mask hides what the paper's rule leaves out
        kept = caption_lengths(ids, END, PAD, official=False)
        there = torch.arange(steps) < torch.tensor(kept)[:, None]
        real[len(BEFORE) : len(BEFORE) + there.numel()] = there.flatten()
    assert real.tolist() == vector["mask"].tolist()
