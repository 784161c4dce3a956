"""What every method promises of its choice alone, on made-up spans: properties, for whatever is registered."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import Place, layout_of, made_up, moved, places_of
from methods import METHODS, VARIANTS
from properties import check_selection, chosen

import vtc
from vtc.pruners.base import Loan
from vtc.pruners.layout import Layout

pytestmark = pytest.mark.usefixtures("no_grad")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PLACES = [place for setting in (*METHODS, *VARIANTS) for place in places_of(setting)]
everywhere = pytest.mark.parametrize("place", PLACES, ids=str)

# what the index must decide, since two tokens are each other's nearest, or all are worth the same
TIED = (
    "divprune",
    "embedlens",
    "idpruner(importance=uniform, parallel=3)",
    "cdpruner(relevance=none)",
    "deep_random",
    "restore",
)
TIED += ("scope(alpha=0, space=projected)",)
UNTRAINED = ("pmod", "pmod(target=shiftedlinear, weights=untrained)")  # all gates are 1

layouts = st.builds(
    layout_of, st.sampled_from(["line", "image", "frames", "crops"]), st.integers(1, 5), st.integers(1, 5)
)
spans_with_gone = st.lists(st.tuples(layouts, st.integers(0, 9)), min_size=1, max_size=3)


def test_every_method_that_chooses_is_here() -> None:
    asked = {place.setting.pruner for place in PLACES}
    assert [name for name in vtc.list_pruners() if name not in asked] == ["vtw"], "it only takes all tokens away"


@everywhere
@given(spans_with_gone, st.floats(0.01, 0.99), st.integers(0, 9999), st.sampled_from(DTYPES), st.booleans())
@settings(max_examples=15)
def test_exact_unique_in_range_and_the_same_alone(place, cases, keep, seed, dtype, copies) -> None:
    pruner, stop = place.at(keep)
    layouts, gone = zip(*cases, strict=True)
    spans = made_up(pruner, stop, layouts, seed, dtype, copies, gone=gone)
    # products of rows of other shapes are rounded otherwise, so ties and half precision may differ
    check_selection(pruner, spans, alone=not copies and dtype is torch.float32)


@everywhere
def test_weights_that_learn_change_nothing(place: Place) -> None:
    pruner, stop = place.at(0.4)
    spans = made_up(pruner, stop, [layout_of("image", 6, 6), layout_of("crops", 3, 3)], seed=5)
    still = chosen(pruner, spans.tokens())
    for row in (*spans.features, *(r for rows in (*spans.reads.values(), *spans.texts.values()) for r in rows)):
        row.requires_grad_(row.is_floating_point())
    with torch.enable_grad():
        assert chosen(pruner, spans.tokens()) == still


@everywhere
@pytest.mark.parametrize("n", [1, 2, 7])
def test_all_of_n(place: Place, n: int) -> None:
    pruner, stop = place.at(0.99)
    spans = made_up(pruner, stop, [Layout.line(n)])
    [kept] = check_selection(pruner, spans)
    asked = spans.budgets[0] if isinstance(stop, Loan) else n  # no layer is lent that all go through
    assert len(kept) == asked or pruner.adaptive_count


@everywhere
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("where", ["features", "signals", "both"])
def test_numbers_that_are_not_finite_cost_neither_count_nor_uniqueness(place: Place, where: str, bad: float) -> None:
    pruner, stop = place.at(0.4)
    spans = made_up(pruner, stop, [layout_of("image", 4, 5), layout_of("crops", 2, 2)], seed=5)
    for signal, rows in spans.reads.items():
        for row in rows if where != "features" else ():
            if signal.is_attention:
                row[..., 2:4] = bad
            elif row.is_floating_point():
                row[2:4] = bad
    for row in spans.features if where != "signals" else ():
        row[2:4] = bad
        row[5, 0] = bad
    check_selection(pruner, spans)


@pytest.mark.parametrize(
    "place",
    [p for p in PLACES if not p.at()[0].order_dependent and p.setting.pruner not in (*TIED, *UNTRAINED)],
    ids=str,
)
@given(st.integers(2, 24), st.integers(0, 999))
@settings(max_examples=10)
def test_the_order_of_the_tokens_plays_no_part(place: Place, n: int, seed: int) -> None:
    pruner, stop = place.at(0.5)
    spans = made_up(pruner, stop, [Layout.line(n)], seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    [before], [after] = chosen(pruner, spans.tokens()), chosen(pruner, moved(spans, order).tokens())
    assert sorted(order[after].tolist()) == sorted(before)


@pytest.mark.parametrize(
    "place",
    [p for p in PLACES if isinstance(p.at()[0], vtc.ScorePruner) and not p.at()[0].order_dependent],
    ids=str,
)
def test_equal_scores_go_to_the_lowest_index(place: Place) -> None:
    pruner, stop = place.at(0.4)
    spans = made_up(pruner, stop, [Layout.line(20)], draw=torch.ones)
    assert chosen(pruner, spans.tokens()) == [list(range(spans.budgets[0]))]
