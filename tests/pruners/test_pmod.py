"""p-MoD's schedule, gates and choice, beside what the vectors hold."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from golden_support import tokens_of
from zoo import prompt, tiny

import vtc
from vtc.pruners.base import Loan
from vtc.pruners.pmod import PMoD, PModRouters


@pytest.mark.parametrize("depth", [4, 6, 8, 24, 28, 32, 40, 80])
def test_the_schedule_at_any_depth(depth: int) -> None:
    stops = PMoD().stops(depth)
    assert all(isinstance(stop, Loan) for stop in stops)
    for stop in stops:
        r = math.cos(math.pi * stop.layer / (depth - 1)) / 2 + 0.5
        assert r <= 0.85
        assert stop.keep == pytest.approx(max(r, 0.15))
    dense = [math.cos(math.pi * i / (depth - 1)) / 2 + 0.5 > 0.85 for i in range(depth)]
    assert sum(dense) + len(stops) == depth
    mean = (sum(dense) + sum(stop.keep for stop in stops)) / depth
    assert mean == pytest.approx(0.537, abs=0.02)


def test_the_authors_literal_and_the_linear_schedule() -> None:
    assert PMoD(official=True).stops(8) == ()
    assert PMoD(official=True).stops(32) == PMoD().stops(32)
    linear = PMoD(target="shiftedlinear").ratios(8)
    assert linear == pytest.approx([1.0, 1.0, *(max(0.15, 1 - i / 7) for i in range(2, 8))])
    with pytest.raises(ValueError, match="target='cosine' must be one of shiftedcos, shiftedlinear"):
        PMoD(target="cosine")


@pytest.mark.parametrize("keep", [0.02, 0.15, 0.3, 0.54, 0.9, 0.99])
@pytest.mark.parametrize("depth", [6, 32])
def test_keep_is_the_mean_over_the_layers(keep: float, depth: int) -> None:
    ratios = PMoD(keep=keep).ratios(depth)
    mean = sum(ratios) / depth
    assert mean <= keep + 1e-9
    assert mean > keep - 0.16 / depth, "a layer that is no longer dense jumps to 0.85"
    assert ratios == sorted(ratios, reverse=True)
    assert min(ratios) < 1


def test_a_count_means_nothing() -> None:
    with pytest.raises(ValueError, match=r"pmod\.keep=64 must be a fraction"):
        PMoD(keep=64)


def test_gates_and_choice_by_the_formula() -> None:
    torch.manual_seed(0)
    routers = PModRouters(16, 5)
    assert not any(p.any() for p in routers.parameters())
    for parameter in routers.parameters():
        torch.nn.init.normal_(parameter)
    pruner = PMoD(weights="untrained")
    pruner.use(routers, {"width": 16, "layers": 5})
    x = torch.randn(2, 9, 16)
    found = pruner.select(tokens_of(x, 4, stage="decoder", layer=3), 4)
    router = routers.routers[3]
    expected = 0.2 * torch.tanh(x @ router.weight[0] + router.bias) + 1
    assert torch.allclose(found.gate, expected, atol=1e-6)
    assert ((found.gate >= 0.8) & (found.gate <= 1.2)).all()
    assert torch.equal(found.index, expected.argsort(1, descending=True)[:, :4])
    half = pruner.select(tokens_of(x.half(), 4, stage="decoder", layer=3), 4)
    assert half.gate.dtype == torch.float32


def test_untrained_routers_take_the_lowest_index() -> None:
    found = PMoD(weights="untrained")
    found.stops(6)
    chosen = found.select(tokens_of(torch.randn(1, 9, 16), 4, stage="decoder", layer=3), 4)
    assert chosen.index.tolist() == [[0, 1, 2, 3]]
    assert torch.equal(chosen.gate, torch.ones(1, 9))


def test_routers_are_kept_in_a_file_and_belong_to_a_depth(tmp_path: Path) -> None:
    model, inputs = tiny("llava"), prompt("llava", "ragged").inputs
    pruner = PMoD(weights="untrained")
    routers = PModRouters(64, 6)
    for i, router in enumerate(routers.routers):
        torch.nn.init.normal_(router.weight, std=0.1, generator=torch.Generator().manual_seed(i))
    pruner.use(routers, {"width": 64, "layers": 6})
    with torch.no_grad(), vtc.compressed(model, pruner):
        expected = model(**inputs).logits
        about = {"model": "tiny", "recipe": "none", "seed": "0"}
        pruner.save(tmp_path / "pmod.safetensors", about)
    with torch.no_grad(), vtc.compressed(model, "pmod", weights=str(tmp_path / "pmod.safetensors")):
        found = model(**inputs).logits
        kept = model.vtc.report.tokens_per_layer
    assert (found - expected).abs().max() < 0.2 * expected.abs().max(), "bfloat16 in the file"
    assert kept[2:] == [40, 21, 8, 8]
    with pytest.raises(ValueError, match="vtc train pmod"):
        vtc.compress(model, "pmod")
