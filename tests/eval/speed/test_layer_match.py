"""Few layers stand for many: exactly, where a layer costs what others of its kind cost between the same stops."""

from __future__ import annotations

import random
from typing import Any

import pytest

from vtc.eval.check.tiny_model.layer_kinds import keep_layers, kinds_of
from vtc.eval.speed.layer_match import Layers, spread_over

CONFIGS: dict[str, dict[str, Any]] = {
    "alike": {"num_hidden_layers": 32},
    "mixed": {"num_hidden_layers": 30, "layer_types": (["sliding"] * 5 + ["full"]) * 5},
    "listed": {"num_hidden_layers": 32, "fullatt_block_indexes": [7, 15, 23, 31]},
    "dense first": {"num_hidden_layers": 27, "first_k_dense_replace": 1},
}

LACKING = {("mixed", (8, 16)), ("listed", (8, 16))}  # no layer of one kind lies between the stops of the few


def layers_of(config: dict[str, Any], count: int) -> Layers:
    config = dict(config)
    kinds = tuple(kinds_of(config, config["num_hidden_layers"]))
    return Layers(kinds, tuple(keep_layers(config, "num_hidden_layers", count)))


@pytest.mark.parametrize(
    ("full", "here"), [((), ()), ((0,), (0,)), ((2,), (2,)), ((8, 16), (2, 4)), ((2, 2), (2, 2))], ids=str
)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_sum_is_that_of_all_layers(name: str, full: tuple[int, ...], here: tuple[int, ...]):
    """Costs by kind, by what was pruned before, and with an extra for the layer right before a stop."""
    layers = layers_of(CONFIGS[name], 8)
    cost = random.Random(0)
    prices: dict[Any, float] = {}

    def price(kind: Any, layer: int, stops: tuple[int, ...]) -> float:
        key = kind, sum(stop <= layer for stop in stops)
        own = prices.setdefault(key, cost.random())
        return own + prices.setdefault((kind, "read"), 0.1) * (layer + 1 in stops and name == "alike")

    if (name, full) in LACKING:
        with pytest.raises(ValueError, match="none of the"):
            layers.match("decoder", full, here)
        return
    match = layers.match("decoder", full, here)
    measured = [price(layers.kinds[layer], i, here) for i, layer in enumerate(layers.picked)]
    whole = [price(kind, i, full) for i, kind in enumerate(layers.kinds)]
    assert spread_over(measured, match) == pytest.approx(whole)


def test_a_whole_stack_stands_for_itself():
    layers = Layers.all(5)
    assert layers.match("decoder", (2,), (2,)) == [[0], [1], [2], [3], [4]]
    assert not layers.cut
    assert spread_over([1.0, 2.0, 4.0, 8.0, 16.0], layers.match("decoder")) == [1.0, 2.0, 4.0, 8.0, 16.0]


def test_what_no_measured_layer_is_like_is_refused():
    layers = layers_of(CONFIGS["alike"], 2)
    with pytest.raises(ValueError, match="none of the 2 decoder layers measured is like layer 2"):
        layers.match("decoder", (2,), (2,))
    with pytest.raises(ValueError, match="prunes 1 times in the 2 decoder layers measured and 2 times in all 32"):
        layers.match("decoder", (2, 4), (1,))
