"""A wrapped model under ``torch.compile``: few more graphs than the stock model's, none anew, the same outputs."""

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

FAMILIES = ("llava", "qwen2_5_vl", "gemma3")


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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("setting", AT_INPUT, ids=str)
def test_input_stage(setting: Setting, family: str) -> None:
    if not fits(setting, family):
        pytest.skip("the family lacks what the method reads")
    assert graphs_of(setting, family) <= stock_graphs(family) + 2
