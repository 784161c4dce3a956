"""``generate`` of a compiled model: the tokens of the uncompiled one."""

from __future__ import annotations

import pytest
import torch
from zoo import prompt, tiny

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize("spec", ["uniform(keep=4)", "dart(layer=2, keep=4)"])
def test_the_same_tokens(spec: str) -> None:
    model, inputs = vtc.compress(tiny("llava"), spec), prompt("llava", "one").inputs
    given = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}
    wanted = model.generate(**inputs, **given).tolist()
    torch._dynamo.reset()
    try:
        model.compile(backend="eager")  # in place: generate() calls the compiled forward
        assert model.generate(**inputs, **given).tolist() == wanted
    finally:
        torch._dynamo.reset()
