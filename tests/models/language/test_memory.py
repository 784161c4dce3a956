"""Hidden states of dropped tokens are freed: nobody holds those of the layers before the last stop."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from methods import METHODS, PIPELINES, Setting, fits
from torch import Tensor
from zoo import prompt, tiny
from zoo.models import DEPTH

import vtc


def last_stop(setting: Setting) -> int | None:
    """The last decoder layer before which it prunes; None: none."""
    given = setting.params if setting.keep is None else {**setting.params, "keep": setting.keep}
    layers = [s.layer for p in vtc.parse(setting.pruner, **given) for s in p.stops(DEPTH) if s.stage == "decoder"]
    return max((layer for layer in layers if layer is not None), default=None)


AT_DECODER = [s for s in METHODS + PIPELINES if fits(s, "llava") and (last_stop(s) or DEPTH) < DEPTH - 1]


@torch.no_grad()
@pytest.mark.parametrize("setting", AT_DECODER, ids=str)
def test_freed(setting: Setting) -> None:
    model, stop = tiny("llava"), last_stop(setting)
    assert stop is not None
    given = setting.params if setting.keep is None else {**setting.params, "keep": setting.keep}
    vtc.compress(model, setting.pruner, **given)
    layers = model.model.language_model.layers
    states: list[tuple[int, weakref.ref[Tensor]]] = []
    held: list[int] = []

    def note(i: int) -> Any:
        def hook(layer: Any, args: Any, output: Any) -> None:
            states.append((i, weakref.ref(output[0] if isinstance(output, tuple) else output)))

        return hook

    for i in range(stop):
        layers[i].register_forward_hook(note(i))
    # the stop's own layer still has its caller's states as they were
    layers[stop + 1].register_forward_pre_hook(lambda *_: held.extend(i for i, x in states if x() is not None))
    model(**prompt("llava", "one").inputs)
    assert [i for i, _ in states] == list(range(stop))
    assert held == []
