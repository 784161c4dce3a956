"""HiPrune: anchors, their neighbours in the grid, and registers, against plain loops."""

from __future__ import annotations

import pytest
import torch
from properties import Spans, check_selection, chosen

import vtc
from vtc.pruners.hiprune import neighbours
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import EncoderAttention

pytestmark = pytest.mark.usefixtures("no_grad")
HEADS = 3
LAST = EncoderAttention(queries="received")
WHOLE = Layout((Grid(5, 6),))
MOSAIC = Layout((Grid(3, 4, "base"), Grid(4, 6, "mosaic", cuts=((2,), (3,)))))
VIDEO = Layout((Grid(2, 3, "frame"), Grid(2, 3, "frame"), Grid(2, 3, "frame")))


def make(layouts, budgets, pruner, seed=0):
    """Spans of these layouts with attention of both layers."""
    g = torch.Generator().manual_seed(seed)
    sizes = [layout.content for layout in layouts]
    reads = {s: [torch.randn(HEADS, n, generator=g).softmax(-1) for n in sizes] for s in pruner.signals}
    return Spans([torch.zeros(n, 1) for n in sizes], budgets, reads, layouts=layouts)


def slow(layout, middle, last, budget, alpha):
    """Kept tokens of a span whose crops are as large as their equal shares at least."""
    places = [(int(p), int(r), int(c)) for p, (_, r, c) in zip(layout.parts(), layout.array, strict=True) if c >= 0]
    crops = [[i for i, (p, _, _) in enumerate(places) if p == crop] for crop in range(max(p for p, _, _ in places) + 1)]
    kept = []
    for turn, crop in enumerate(crops):
        share = budget // len(crops) + (turn < budget % len(crops))
        count = round(budget // len(crops) * alpha / 5)
        anchors = sorted(crop, key=lambda i: -middle[i])[:count]
        near = [
            i
            for i in crop
            if i not in anchors
            and any(abs(places[i][1] - places[a][1]) + abs(places[i][2] - places[a][2]) == 1 for a in anchors)
        ]
        mine = anchors + sorted(near, key=lambda i: -middle[i])
        mine += sorted((i for i in crop if i not in mine), key=lambda i: -last[i])
        kept += mine[:share]
    return sorted(kept)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("layout", "budget"), [(WHOLE, 11), (MOSAIC, 15), (MOSAIC, 23), (VIDEO, 8)])
def test_against_plain_loops(layout, budget, alpha):
    pruner = vtc.parse("hiprune", keep=budget, alpha=alpha)[0]
    for seed in range(3):
        spans = make([layout], [budget], pruner, seed)
        middle, last = (spans.reads[s][0].mean(0).tolist() for s in pruner.signals)
        assert sorted(chosen(pruner, spans.tokens())[0]) == slow(layout, middle, last, budget, alpha)


def test_neighbours_stay_inside_their_crop_unless_taken_for_a_line():
    assert neighbours(Layout((Grid(2, 4),)), False)[1].tolist() == [0, 2, -1, 5]  # an equal layout, without the cut
    found = neighbours(Layout((Grid(2, 4, cuts=((), (2,))),)), False)
    assert found[1].tolist() == [0, -1, -1, 5]  # 2 is another crop's
    assert found[6].tolist() == [-1, 7, 2, -1]
    flat = neighbours(Layout((Grid(2, 3),)), True)
    assert flat[2].tolist() == [1, 3, 0, 5]  # 3 begins the next row, and above the first row is its beginning
    assert flat[5].tolist() == [4, 5, 2, 5]


def test_what_a_crop_is_too_small_for_goes_to_the_others():
    thin = Layout((Grid(4, 4, "base"), Grid(4, 5, "mosaic", cuts=((), (4,)))))
    pruner = vtc.parse("hiprune", keep=24)[0]
    spans = make([thin], [24], pruner)
    kept = chosen(pruner, spans.tokens())[0]
    parts = torch.from_numpy(thin.parts())[kept].bincount().tolist()
    assert parts == [10, 10, 4]


@pytest.mark.parametrize("spec", ["alpha=0.1", "alpha=1", "alpha=0.5, official=True"])
def test_batches_and_broken_attention(spec):
    pruner = vtc.parse(f"hiprune({spec})", keep=6)[0]
    check_selection(pruner, make([WHOLE, MOSAIC, VIDEO], [6, 12, 5], pruner))
    spans = make([WHOLE], [26], pruner)
    for values in spans.reads.values():
        values[0][:, 4] = float("nan")
    assert 4 not in chosen(vtc.parse("hiprune", keep=26, alpha=0)[0], spans.tokens())[0]


def test_layers_and_parameters():
    assert vtc.parse("hiprune")[0].signals == (EncoderAttention(layer=8 / 24, queries="received"), LAST)
    assert vtc.parse("hiprune(shallow=15)")[0].signals[0].layer == 15
    with pytest.raises(ValueError, match=r"hiprune\.alpha=1\.5 is out of range"):
        vtc.parse("hiprune(alpha=1.5)")
