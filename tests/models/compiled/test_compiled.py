"""A wrapped model under ``torch.compile``: few more graphs than the stock model's, none anew, the same outputs.

Each test traces a whole model, which takes ten seconds or more; a run takes a share of the methods.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import pytest
from compiling import Pieces, compiled, other_picture
from contracts import TOLERANCE
from methods import METHODS, Setting, fits
from zoo import prompt, tiny
from zoo.models import DEPTH

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")

OTHERS = ("qwen2_5_vl", "gemma3")


def pipeline(setting: Setting) -> tuple[Any, ...]:
    given = setting.params if setting.keep is None else {**setting.params, "keep": setting.keep}
    return vtc.parse(setting.pruner, **given)


def stages(setting: Setting) -> list[str]:
    """The stage of each of its stops."""
    return [stop.stage for p in pipeline(setting) for stop in p.stops(DEPTH)]


def own_pieces(setting: Setting) -> int:
    """How many pieces are traced of a tower that breaks graphs in every layer: two of each layer that is read."""
    signals = [s for p in pipeline(setting) for s in p.signals if s.part == "encoder"]
    return 2 * len({getattr(signal, "layer", None) for signal in signals})


REFUSED = ("pmod", "reroute", "restore")  # what lends or calibrates
AT_INPUT = [s for s in METHODS if set(stages(s)) == {"input"} and s.pruner not in REFUSED]
AT_DECODER = [s for s in METHODS if "decoder" in stages(s) and s.pruner not in REFUSED]
PIPELINES = [Setting(spec) for spec in ("uniform(keep=0.8) + fastv(layer=3, keep=0.3)", "dart(layer=2, keep=4)")]
# after a count that is known before the choice, and after one that is not
PIPELINES += [Setting(f"pool(layer=1, keep=0.8) + {spec}") for spec in ("tome(layer=3, keep=0.4)", "vtw(layer=3)")]
PIPELINES += [Setting("todre_removal(layer=2, keep=0.5) + transprune(layers=(4,), ratios=(0.2,), since=1)")]


@lru_cache
def stock_pieces(family: str, shape: str, impl: str) -> Pieces:
    model, inputs = tiny(family, impl), prompt(family, shape).inputs
    model(**inputs)
    with compiled(model) as (run, pieces):
        run(**inputs)
    return pieces


def more_pieces(setting: Setting, family: str, shape: str = "one", impl: str = "sdpa") -> Pieces:
    """Compiles, runs two pictures, holds both to the uncompiled model; how many pieces more than the stock model's."""
    model, inputs = tiny(family, impl), prompt(family, shape).inputs
    vtc.compress(model, setting.pruner, **({} if setting.keep is None else {"keep": setting.keep}), **setting.params)
    others = other_picture(inputs)
    wanted = [model(**given).logits for given in (inputs, others)]
    traced, runs = [], [0]
    with compiled(model) as (run, pieces):
        for given, logits in zip((inputs, others, inputs), (*wanted, wanted[0]), strict=True):
            found = run(**given).logits
            assert found.shape == logits.shape
            assert (found - logits).abs().max() < TOLERANCE
            traced.append(pieces.traced)
            runs.append(pieces.run)
    assert traced[0] == traced[1] == traced[2], "traced anew for another picture of the same size"
    stock, each = stock_pieces(family, shape, impl), {b - a for a, b in pairwise(runs)}
    assert len(each) == 1, "another picture of the same size is cut otherwise"
    return Pieces(traced[0] - stock.traced, each.pop() - stock.run)


def check_few(more: Pieces, traced: int = 2) -> None:
    assert more.traced <= traced
    assert more.run <= 2


@pytest.mark.share(2)
@pytest.mark.parametrize("setting", [s for s in AT_INPUT if fits(s, "llava")], ids=str)
def test_input_stage(setting: Setting) -> None:
    check_few(more_pieces(setting, "llava"))


@pytest.mark.share(8)
@pytest.mark.parametrize("setting", [s for s in AT_INPUT if fits(s, "llava")], ids=str)
def test_input_stage_of_a_padded_batch(setting: Setting) -> None:
    check_few(more_pieces(setting, "llava", "ragged"))


@pytest.mark.share(4)
@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("spec", ["uniform(keep=3)", "idpruner(keep=3)"])
def test_input_stage_elsewhere(spec: str, family: str) -> None:
    """Other masks and positions (windows, patterns, three axes), and a tower that breaks graphs of its own."""
    check_few(more_pieces(Setting(spec), family))


@pytest.mark.share(4)
@pytest.mark.parametrize("setting", [s for s in AT_DECODER if fits(s, "llava")] + PIPELINES, ids=str)
def test_decoder_stage(setting: Setting) -> None:
    check_few(more_pieces(setting, "llava"))


@pytest.mark.share(8)
@pytest.mark.parametrize("setting", [s for s in AT_DECODER if fits(s, "llava")] + PIPELINES, ids=str)
def test_decoder_stage_of_a_padded_batch(setting: Setting) -> None:
    """Rows of several lengths: masks behind a stop are made of what it left, in the graph."""
    check_few(more_pieces(setting, "llava", "ragged"))


@pytest.mark.share(8)
@pytest.mark.parametrize("setting", [s for s in AT_DECODER if fits(s, "qwen2_5_vl")] + PIPELINES, ids=str)
def test_decoder_stage_of_qwen(setting: Setting) -> None:
    """Three axes of positions, and attention that takes position ids."""
    check_few(more_pieces(setting, "qwen2_5_vl"), max(2, 1 + own_pieces(setting)))


@pytest.mark.share(8)
@pytest.mark.parametrize("setting", [s for s in AT_INPUT if fits(s, "qwen2_5_vl")], ids=str)
def test_input_stage_of_qwen(setting: Setting) -> None:
    check_few(more_pieces(setting, "qwen2_5_vl"), max(2, own_pieces(setting)))


@pytest.mark.share(4)
@pytest.mark.parametrize("shape", ["one", "ragged"])
@pytest.mark.parametrize("spec", ["fastv(layer=3, keep=3)", "pyramiddrop(keep=0.4)", "todre_removal(layer=2, tau=1.0)"])
@pytest.mark.parametrize(("family", "impl"), [("gemma3", "sdpa"), ("llava", "eager"), ("qwen3_vl", "sdpa")])
def test_masks_behind_a_stop(family: str, impl: str, spec: str, shape: str) -> None:
    """Sliding windows and pictures that see themselves in both directions, additive masks, features fed to layers."""
    check_few(more_pieces(Setting(spec), family, shape, impl))
