"""What choosing holds on the CPU, with numbers: of every registered method at most three times the features' bytes."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from made_up import Place, Sizes, made_up, places_of
from methods import VARIANTS, Setting, setting
from properties import allocated_bytes

import vtc
from vtc.pruners.layout import Grid, Layout

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # nothing from the profiler that counts bytes
pytestmark = pytest.mark.usefixtures("no_grad")

KEEP = 0.11
PARAMS = {"zoo_prune": {"directions": 4}}  # its cost is projector passes
NEXT = Layout((Grid(24, 24, "base"), Grid(48, 48, "mosaic", cuts=((24,), (24,)))))
LLAVA = Sizes(heads=16, unit=1, encoder=1024, decoder=2048, head=64, text=16, vocabulary=500)
NARROW = replace(LLAVA, decoder=1024)
# whole networks in float32, whose activations count: four layers' patches beside the features, twice in half precision
MORE = {("quecc", torch.float32): 5, ("quecc", torch.bfloat16): 10, ("tokenflex", torch.bfloat16): 7.5}
MORE |= {("langdc", torch.bfloat16): 5}


def _setting(name: str) -> Setting:
    return Setting(name, KEEP, PARAMS[name]) if name in PARAMS else setting(name, KEEP)


OF_METHODS = [place for name in vtc.list_pruners() for place in places_of(_setting(name))]
OF_VARIANTS = 4  # some keep more than they are asked for
PLACES = OF_METHODS + [place for setting in VARIANTS for place in places_of(setting)]


def test_every_method_that_chooses_is_here() -> None:
    asked = {place.setting.pruner for place in OF_METHODS}
    assert [name for name in vtc.list_pruners() if name not in asked] == ["vtw"], "it only takes all tokens away"


def _held(place: Place, dtype: torch.dtype, sizes: Sizes, pictures: int = 1) -> float:
    """Bytes that choosing holds, over those of the features."""
    pruner, stop = place.at(KEEP)
    if stop.stage == "decoder":  # all its heads together are as wide as its states
        sizes = replace(sizes, head=sizes.decoder // sizes.heads)
    tokens = made_up(pruner, stop, [NEXT] * pictures, dtype=dtype, sizes=sizes).tokens()
    held = allocated_bytes(lambda: pruner.select(tokens, max(tokens.budgets)))
    return held / (pictures * NEXT.tokens * sizes.decoder * dtype.itemsize)


def _limit(place: Place, dtype: torch.dtype) -> float:
    return max(3 if place in OF_METHODS else OF_VARIANTS, MORE.get((place.at()[0].name, dtype), 0))


@pytest.mark.share(3)
@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_three_times_the_features(place: Place, dtype: torch.dtype) -> None:
    """2,880 tokens of width 2,048."""
    assert _held(place, dtype, LLAVA) <= _limit(place, dtype)


@pytest.mark.share(16)
@pytest.mark.parametrize("place", OF_METHODS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_three_times_the_features_of_a_batch(place: Place, dtype: torch.dtype) -> None:
    """Eight pictures of 2,880 tokens of width 1,024: matrices of all pairs are not held for all of them."""
    assert _held(place, dtype, NARROW, pictures=8) <= _limit(place, dtype)
