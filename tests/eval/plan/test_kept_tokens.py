"""Visual tokens by layer in a plan are those that a pruned model really has, wherever the method prunes."""

from __future__ import annotations

import pytest
import torch
from zoo import FAMILIES, prompt, tiny

from vtc.api import compressed
from vtc.eval.cost.model_work import ModelWork
from vtc.eval.cost.operators import flops_of
from vtc.eval.cost.prefill_cost import Measured
from vtc.eval.plan.kept_tokens import kept_by, unpruned
from vtc.models.layout.model_parts import locate
from vtc.pipeline_text import parse

SPECS = (
    "random(keep=3)",
    "random(keep=0.5) + random(layer=2, keep=0.2)",
    "random(layer=1, keep=0.4)",
    "vtw(layer=3)",
    "pyramiddrop(keep=0.4)",
)
INSIDE = ("llava", "qwen2_5_vl", "gemma3")


def reported(name: str, spec: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a plan says and what a forward reports."""
    model, given = tiny(name), prompt(name, "one").inputs
    parts = locate(model)
    lengths = ModelWork(parts).tower(given).lengths
    planned = kept_by(parts, parse(spec), lengths).per_layer
    with compressed(model, spec) as wrapped, torch.no_grad():
        wrapped(**given, use_cache=True)
        found = Measured.from_report(wrapped.vtc.report, 0, len(parts.layers))
    assert found.total == sum(lengths)
    return planned, found.per_layer


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_behind_the_tower(name: str, spec: str) -> None:
    planned, found = reported(name, spec)
    assert planned == found


@pytest.mark.parametrize("name", INSIDE)
def test_inside_the_tower(name: str) -> None:
    planned, found = reported(name, "random(at=vision, layer=1, keep=0.5)")
    assert planned == found


def test_layers_behind_a_stop_in_the_tower_do_less() -> None:
    parts = locate(tiny("llava"))
    tower = ModelWork(parts).tower(prompt("llava", "one").inputs)
    kept = kept_by(parts, parse("random(at=vision, layer=1, keep=0.5)"), tower.lengths)
    assert kept.tower_shares[0] == 1
    assert set(kept.tower_shares[1:]) == {kept.last / sum(tower.lengths)}
    before, after = ([flops_of(o) for o in layers] for layers in (tower.layers, shortened(tower, kept)))
    assert after[0] == before[0]
    assert all(0.2 * b < a < 0.51 * b for a, b in zip(after[1:], before[1:], strict=True))
    assert flops_of(tower.tower(kept.tower_shares)) == flops_of(tower.rest) + sum(after)


def shortened(tower: object, kept: object) -> list[list[object]]:
    pairs = zip(tower.layers, kept.tower_shares, strict=True)  # type: ignore[attr-defined]
    return [[o.shortened(share) for o in layer] for layer, share in pairs]


def test_unpruned_is_everything_everywhere() -> None:
    assert unpruned((3, 4), 2).per_layer == (7, 7)
