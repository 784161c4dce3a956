"""Selection primitives and grid cells against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from vtc.pruners.layout import Grid, Layout
from vtc.pruners.primitives.grid_cells import grid_cells
from vtc.pruners.primitives.ranking import top_k


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.data())
def test_top_k_takes_the_largest_and_the_lowest_index_on_ties(values, data):
    k = data.draw(st.integers(1, len(values)))
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert top_k(torch.tensor([values], dtype=torch.bfloat16), k)[0].tolist() == expected


def test_top_k_puts_padding_last():
    score = torch.tensor([[5.0, 9.0, 1.0]])
    valid = torch.tensor([[True, False, True]])
    assert top_k(score, 3, valid)[0].tolist() == [0, 2, 1]


def test_top_k_needs_no_host_sync():
    with FakeTensorMode():
        assert top_k(torch.randn(2, 9, device="cuda"), 3).device.type == "cuda"


grids = st.lists(st.builds(Grid, st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4)


@given(grids, st.data())
@settings(max_examples=200)
def test_cells_are_exactly_k_and_each_has_its_own_centre(found, data):
    layout = Layout(tuple(found))
    k = data.draw(st.integers(1, layout.content))
    cells, centres = grid_cells(layout, k)
    assert sorted(set(cells.tolist())) == list(range(k))
    assert len(set(centres.tolist())) == k
    assert cells[centres].tolist() == list(range(k))


@pytest.mark.parametrize("side", [4, 24])
def test_a_quarter_of_an_even_grid_is_two_by_two_blocks(side):
    cells, centres = grid_cells(Layout((Grid(side, side),)), side * side // 4)
    rows, cols = np.divmod(np.arange(side * side), side)
    assert (cells == rows // 2 * (side // 2) + cols // 2).all()
    # each block's lowest corner is nearest to its centre, with all four tied
    assert centres.tolist() == [r * side + c for r in range(0, side, 2) for c in range(0, side, 2)]


@given(st.integers(2, 24), st.integers(2, 24), st.data())
def test_cells_are_nearly_equal_boxes(rows, cols, data):
    k = data.draw(st.integers(1, rows * cols))
    cells, _ = grid_cells(Layout((Grid(rows, cols),)), k)
    y, x = np.divmod(np.arange(rows * cols), cols)
    for cell in range(k):
        mine = cells == cell
        box = (y[mine].max() - y[mine].min() + 1) * (x[mine].max() - x[mine].min() + 1)
        assert box == mine.sum()


def test_crops_share_in_proportion():
    layout = Layout((Grid(6, 6), Grid(12, 12, "crops", "row")))
    cells, centres = grid_cells(layout, 30)
    assert (centres < 36).sum() == 6
    assert len(cells) == 36 + 144
    assert layout.tokens == 36 + 144 + 12
    assert layout.newline.sum() == 12 == len(layout.newline_ids)
    assert layout.newline_ids[0] == 36 + 12
