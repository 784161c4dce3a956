"""LangDC's length rule both ways, and which states become caption tokens."""

from __future__ import annotations

import pytest
import torch

from vtc.pruners.trained.captions import caption_lengths, caption_states, pool_square

END, PAD = 9, 0
#           ends at 1        at the last step  never            at once
CAPTIONS = [[3, 9, 0, 0], [3, 4, 5, 9], [3, 4, 5, 6], [9, 0, 0, 0]]


def test_the_end_is_kept_and_a_full_caption_loses_its_last_step_in_the_published_code() -> None:
    assert caption_lengths(torch.tensor(CAPTIONS), END, PAD) == [2, 3, 3, 1]
    assert caption_lengths(torch.tensor(CAPTIONS), END, PAD, official=False) == [2, 4, 4, 1]


def test_states_are_taken_segment_by_segment_of_one_layer() -> None:
    states = torch.arange(3 * 2 * 4 * 1.0).view(3, 2, 4, 1)
    assert caption_states(list(states), [2, 1], "embedding").flatten().tolist() == [0, 1, 4]
    assert caption_states(list(states), [1, 2], 2).flatten().tolist() == [16, 20, 21]


def test_only_square_maps_are_pooled() -> None:
    assert torch.equal(pool_square(torch.arange(4.0).view(1, 4, 1), 1), torch.tensor([[[1.5]]]))
    with pytest.raises(ValueError, match="6 tokens are no square map"):
        pool_square(torch.zeros(1, 6, 2), 1)
