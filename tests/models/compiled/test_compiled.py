"""A wrapped model under ``torch.compile``: few more graphs than the stock model's, none anew, the same outputs.

Each test traces a whole model, which takes ten seconds or more; a run takes a share of the methods.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from compiling import compiled, other_picture
from contracts import TOLERANCE
from methods import METHODS, Setting, fits
from zoo import prompt, tiny
from zoo.models import DEPTH

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")

OTHERS = ("qwen2_5_vl", "gemma3")


def stages(setting: Setting) -> list[str]:
    """The stage of each of its stops."""
    given = setting.params if setting.keep is None else {**setting.params, "keep": setting.keep}
    return [stop.stage for p in vtc.parse(setting.pruner, **given) for stop in p.stops(DEPTH)]


AT_INPUT = [s for s in METHODS if set(stages(s)) == {"input"}]


@lru_cache
def stock_graphs(family: str) -> int:
    model, inputs = tiny(family), prompt(family, "one").inputs
    model(**inputs)
    with compiled(model) as (run, graphs):
        run(**inputs)
    return len(graphs)


def graphs_of(setting: Setting, family: str) -> int:
    """Compiles, runs two pictures, holds both to the uncompiled model, and counts graphs."""
    model, inputs = tiny(family), prompt(family, "one").inputs
    vtc.compress(model, setting.pruner, **({} if setting.keep is None else {"keep": setting.keep}), **setting.params)
    others = other_picture(inputs)
    wanted = [model(**given).logits for given in (inputs, others)]
    kept: list[Any] = []
    with compiled(model) as (run, graphs):
        for given, logits in zip((inputs, others, inputs), (*wanted, wanted[0]), strict=True):
            found = run(**given).logits
            assert found.shape == logits.shape
            assert (found - logits).abs().max() < TOLERANCE
            kept.append(len(graphs))
    assert kept[0] == kept[1] == kept[2], "traced anew for another picture of the same size"
    return kept[0]


@pytest.mark.share(2)
@pytest.mark.parametrize("family", ["llava"])
@pytest.mark.parametrize("setting", [s for s in AT_INPUT if fits(s, "llava")], ids=str)
def test_input_stage(setting: Setting, family: str) -> None:
    assert graphs_of(setting, family) <= stock_graphs(family) + 2


@pytest.mark.share(4)
@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("spec", ["uniform(keep=3)", "idpruner(keep=3)"])
def test_input_stage_elsewhere(spec: str, family: str) -> None:
    """Other masks and positions (windows, patterns, three axes), and a tower that breaks graphs of its own."""
    more = 2
    if (spec, family) == ("idpruner(keep=3)", "qwen2_5_vl"):
        more = 3  # its tower breaks graphs in every layer, and the layer that is read has two pieces of its own
    assert graphs_of(Setting(spec), family) <= stock_graphs(family) + more


# what they read is there when they choose, and how many tokens they leave is known beforehand
AT_DECODER = ("dart(layer=2, keep=4)", "uniform(keep=0.8) + fastv(layer=3, keep=0.3)", "pyramiddrop(keep=0.3)")


@pytest.mark.share(2)
@pytest.mark.parametrize("spec", AT_DECODER)
def test_decoder_stage(spec: str) -> None:
    stops = [stop for p in vtc.parse(spec) for stop in p.stops(DEPTH)]
    assert any(stop.stage == "decoder" for stop in stops)
    assert graphs_of(Setting(spec), "llava") <= stock_graphs("llava") + 2 * len(stops)
