"""Positions of pruned prompts, from grids alone, against those that transformers gives the tokens that are left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from zoo import Prompt, prompt, tiny
from zoo.tokens import IMAGE

from vtc.integrations.vllm.positions import (
    CHANNELS,
    LARGEST,
    Run,
    as_channels,
    from_channels,
    narrowed,
    placed,
    slots_from,
    widened,
)

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_coordinates_are_exact_in_every_dtype(dtype: torch.dtype) -> None:
    for cols in (1, 17, 300, LARGEST):
        ids = torch.tensor([0, cols - 1, cols, 256 * cols + min(257, cols - 1), LARGEST * cols])
        channels = as_channels(ids, cols, torch.zeros(0, dtype=dtype))
        assert channels.dtype == dtype
        assert channels.shape == (5, CHANNELS)
        kept = torch.cat([torch.randn(5, 3).to(dtype), channels], 1)[:, 3:]  # as they travel
        assert torch.equal(from_channels(kept), torch.stack([ids // cols, ids % cols]))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(0, 6)), max_size=4), st.integers(1, 4))
def test_a_prompt_is_widened_back_to_what_it_was(pictures: list[tuple[int, int, int]], tail: int) -> None:
    pruned: list[int] = []
    whole: list[int] = []
    runs, starts = [], []
    for i, (text, kept, gone) in enumerate(pictures):
        words = [100 + i] * text
        runs.append(Run(len(pruned) + text, kept, kept + gone))
        starts.append(len(whole) + text)
        pruned += words + [9] * kept
        whole += words + [9] * (kept + gone)
    pruned += [1] * tail
    whole += [1] * tail
    assert widened(pruned, runs) == (whole, starts)
    positions = torch.arange(len(whole)).expand(3, -1)
    found, delta = narrowed(positions, runs)
    assert found.shape[1] == len(pruned)
    assert found[0, -1] + 1 == len(pruned) + delta == len(whole)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("shape", "row"), [("ragged", 0), ("ragged", 1), ("video", 1)])  # i, i.i, i.v
@pytest.mark.parametrize("keep", [0.3, 1.0])
def test_positions_and_the_next_token_are_those_of_the_whole_prompt(
    family: str, shape: str, row: int, keep: float
) -> None:
    batch = prompt(family, shape)
    inputs = Prompt(batch.family, [batch.rows[row]], [batch.media[row]]).inputs
    ids, grids = inputs["input_ids"], inputs["image_grid_thw"]
    given_ = {k: v for k, v in inputs.items() if not k.startswith("pixel")}
    positions, delta = tiny(family).model.get_rope_index(**given_)
    positions = positions[:, 0]
    flags, at = (ids[0] == IMAGE).tolist(), 0
    runs: list[Run] = []
    kept: list[Tensor] = []
    left: list[int] = []
    generator = torch.Generator().manual_seed(0)
    sizes = [(int(h) // 2, int(w) // 2) for _, h, w in grids]
    for rows, cols in sizes:
        start = flags.index(True, at)
        left += range(at, start)
        n, k = rows * cols, max(1, round(keep * rows * cols))
        some = torch.randperm(n, generator=generator)[:k].sort().values
        runs.append(Run(len(left), k, n))
        kept.append(as_channels(some, cols, torch.zeros(0, dtype=torch.bfloat16)))
        left += (some + start).tolist()
        at = start + n
    left += range(at, ids.shape[1])
    pruned = ids[0, left].tolist()
    assert widened(pruned, runs)[0] == ids[0].tolist()
    found, next_ = narrowed(positions, runs)
    where = torch.tensor([i for i, token in enumerate(pruned) if token != IMAGE])
    assert torch.equal(found[:, where], positions[:, left][:, where])  # text is exact before anything is encoded
    assert len(pruned) + next_ == ids.shape[1] + int(delta)
    # pictures come in pieces, as chunked prefill gives them
    channels, start = torch.cat(kept), 0
    for piece in channels.split(5):
        slots = slots_from(pruned, IMAGE, start, len(piece))
        found, start = placed(found, slots, piece), int(slots[-1]) + 1
    assert torch.equal(found, positions[:, left])


def test_slots_begin_behind_what_was_computed() -> None:
    tokens = [1, 9, 9, 1, 9, 9, 9]
    assert slots_from(tokens, 9, 2, 3).tolist() == [2, 4, 5]
    assert np.array_equal(slots_from(torch.tensor(tokens), 9, 0, 9), [1, 2, 4, 5, 6])
