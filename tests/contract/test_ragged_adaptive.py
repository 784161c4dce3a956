"""Methods that keep another number than asked: one token at least, and of a ragged batch each row its own number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_up import Place, layout_of, made_up, places_of
from methods import METHODS, NO_VISION_STAGE, VARIANTS
from properties import chosen
from zoo import FAMILIES, tiny
from zoo.prompts import Prompt

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")
ADAPTIVE = [place for setting in (*METHODS, *VARIANTS) for place in places_of(setting) if place.at()[0].adaptive_count]
LAYOUTS = [layout_of("crops", 3, 3), layout_of("image", 1, 2), layout_of("frames", 2, 2), layout_of("line", 1, 5)]


@pytest.mark.parametrize("place", [p for p in ADAPTIVE if p.stage != "decoder"], ids=str)
@pytest.mark.parametrize("keep", [0.01, 0.05, 0.4])
def test_no_span_is_left_empty(place: Place, keep: float) -> None:
    pruner, stop = place.at(keep)
    for layout in LAYOUTS:
        [kept] = chosen(pruner, made_up(pruner, stop, [layout], seed=3).tokens())
        assert 1 <= len(kept) <= layout.content


@pytest.mark.parametrize("place", ADAPTIVE, ids=str)
def test_each_row_of_a_ragged_batch_keeps_as_many_as_alone(place: Place) -> None:
    pruner, stop = place.at(0.4)
    spans = made_up(pruner, stop, LAYOUTS, seed=4)
    together = chosen(pruner, spans.tokens())
    alone = [chosen(pruner, spans.tokens([i]))[0] for i in range(len(LAYOUTS))]
    assert [len(row) for row in together] == [len(row) for row in alone]


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("mistral3", ((56, 56), (28, 28))),
        ("llava_next", ((56, 56), (28, 28))),
        ("qwen2_vl", ((1, 8, 8), (1, 4, 8))),
    ],
)
@pytest.mark.parametrize("spec", ["vscan(window=2, ratio=3.0, official=True, keep=0.5)", "flowcut(layer=2, keep=0.5)"])
def test_pictures_of_different_sizes_keep_their_own_share(family: str, sizes: Any, spec: str) -> None:
    """A picture of few tokens beside one of many: it kept as many as the larger one, or stopped the forward."""
    if "flowcut" in spec and family in NO_VISION_STAGE:
        pytest.skip("it can't be pruned inside its tower")
    f, g = FAMILIES[family], torch.Generator().manual_seed(0)
    large, small = (f.picture(size, False, g) for size in sizes)
    model = tiny(family)
    inputs = Prompt(f, [[1, 5, *large.ids, 6, *small.ids, 7, 8]], [[large, small]]).inputs
    with vtc.compressed(model, spec):
        model(**inputs)
        report = model.vtc.report
    numbers = [len(span.columns) for span in report.spans]
    assert numbers[0] > numbers[1]
    assert [len(kept) for kept in report.steps[-1].kept] == [max(1, int(n * 0.5 + 0.5)) for n in numbers]


def test_random_deep_in_the_decoder_behind_an_adaptive_method() -> None:
    [pruner] = vtc.parse("deep_random", keep=0.5, first="evs", first_params={"official": True}, layer=3)
    assert pruner.adaptive_count
    stop = pruner.stops(6)[1]
    spans = made_up(pruner, stop, LAYOUTS, seed=5)
    rows = chosen(pruner, spans.tokens())
    assert [len(row) for row in rows] == list(spans.budgets)
    assert all(len(set(row)) == len(row) for row in rows)
