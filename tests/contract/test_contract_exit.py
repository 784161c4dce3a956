"""Contract 5: after restore(), or an exception anywhere inside a forward, everything is as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from anatomy import anatomy
from contracts import same_report
from methods import BOTH_STAGES, IN_THE_TOWER, METHODS, READING, Setting, cells
from reference import greedy, text_model
from torch import Tensor, nn
from zoo import FAMILIES, prompt, tiny

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")


def compress(model: nn.Module, setting: Setting) -> nn.Module:
    return vtc.compress(model, setting.pruner, keep=setting.keep, **setting.params)


@pytest.mark.share(3)
@pytest.mark.parametrize(("setting", "family"), cells([*METHODS, READING, IN_THE_TOWER], FAMILIES))
def test_restore_leaves_no_trace(setting: Setting, family: str) -> None:
    model, inputs = tiny(family), prompt(family, "ragged").inputs
    before_tokens, before_logits = greedy(model, inputs, 4), model(**inputs).logits  # transformers adds lazy hooks here
    before = anatomy(model)
    wrapped = compress(model, setting)
    assert wrapped is model
    greedy(model, inputs, 4)
    assert vtc.restore(model) is model
    assert anatomy(model) == before
    assert not hasattr(model, "vtc")
    assert "get_image_features" not in model.base_model.__dict__
    assert torch.equal(model(**inputs).logits, before_logits)
    after = greedy(model, inputs, 4)
    assert torch.equal(after.tokens, before_tokens.tokens)
    assert torch.equal(after.logits, before_tokens.logits)


class Broken(RuntimeError):
    pass


@contextmanager
def raising(module: nn.Module) -> Iterator[None]:
    """Let the next forward of `module` raise."""

    def hook(*_: Any) -> None:
        raise Broken

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def tower_layer(model: nn.Module) -> nn.Module:
    """Some module deep inside the vision tower."""
    core = model.base_model
    tower = next(getattr(core, n) for n in ("vision_tower", "visual", "vision_model") if hasattr(core, n))
    lists = [m for m in tower.modules() if isinstance(m, nn.ModuleList)]
    return lists[0][1]


PLACES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "vision tower": tower_layer,
    "decoder layer before pruning": lambda m: text_model(m).layers[1],
    "attention of a decoder layer": lambda m: text_model(m).layers[1].self_attn,
    "decoder layer behind pruning": lambda m: text_model(m).layers[4],
    "final norm": lambda m: text_model(m).norm,
    "head": lambda m: m.lm_head,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3"])
def test_an_exception_inside_forward_leaves_the_model_usable(family: str, place: str) -> None:
    model, inputs = tiny(family), prompt(family, "ragged").inputs
    greedy(model, inputs, 2)
    before = anatomy(model)
    plain = model(**inputs).logits
    text_only = prompt(family, "text").inputs
    plain_text = model(**text_only).logits
    compress(model, READING)
    good, report = greedy(model, inputs, 4), model.vtc.report
    with raising(PLACES[place](model)):
        with pytest.raises(Broken):
            model(**inputs)
        with pytest.raises(Broken):
            greedy(model, inputs, 4)
    # a text-only call right behind the failure must not inherit its images
    assert torch.equal(model(**text_only).logits, plain_text)
    again = greedy(model, inputs, 4)
    assert torch.equal(again.logits, good.logits)
    assert same_report(model.vtc.report, report)
    with raising(PLACES[place](model)), pytest.raises(Broken):
        model(**inputs)
    vtc.restore(model)
    assert anatomy(model) == before
    assert torch.equal(model(**inputs).logits, plain)


@dataclass(kw_only=True)
class Sometimes(vtc.Pruner):
    """Keeps the first tokens, or raises, or returns nonsense."""

    name = "sometimes"
    mood: str = "good"

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        if self.mood == "raise":
            raise Broken
        index = torch.arange(k).expand(len(tokens.counts), k)
        return {"good": index, "float": index.float(), "short": index[:, :-1]}[self.mood]


@pytest.mark.parametrize(("mood", "error"), [("raise", Broken), ("float", TypeError), ("short", ValueError)])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_a_method_that_fails_is_an_error_and_nothing_else(family: str, mood: str, error: type[Exception]) -> None:
    model, inputs = tiny(family), prompt(family, "ragged").inputs
    plain = model(**inputs).logits
    pruner = Sometimes(keep=0.5)
    vtc.compress(model, pruner)
    good = greedy(model, inputs, 4)
    pruner.mood = mood
    with pytest.raises(error):
        greedy(model, inputs, 4)
    pruner.mood = "good"
    assert torch.equal(greedy(model, inputs, 4).logits, good.logits)
    vtc.restore(model)
    assert torch.equal(model(**inputs).logits, plain)


def test_a_wrong_number_of_placeholders_is_transformers_own_error_and_leaves_no_state() -> None:
    model, inputs = tiny("llava"), prompt("llava", "ragged").inputs
    compress(model, BOTH_STAGES)
    good = greedy(model, inputs, 3)
    with pytest.raises((ValueError, RuntimeError), match="do not match"):
        model(**{**inputs, "pixel_values": inputs["pixel_values"][:-1]})
    assert torch.equal(greedy(model, inputs, 3).logits, good.logits)


def test_the_context_manager_restores_when_its_body_raises() -> None:
    model, inputs = tiny("qwen2_5_vl"), prompt("qwen2_5_vl", "ragged").inputs
    plain, before = model(**inputs).logits, anatomy(model)

    def use_and_fail() -> None:
        with vtc.compressed(model, READING.pruner):
            model(**inputs)
            raise Broken

    with pytest.raises(Broken):
        use_and_fail()
    assert anatomy(model) == before
    assert torch.equal(model(**inputs).logits, plain)


def test_a_compress_that_fails_leaves_no_trace() -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    model(**inputs)
    before = anatomy(model)
    with pytest.raises(ValueError, match="layer=99"):
        vtc.compress(model, "random(layer=99, keep=0.5)")
    with pytest.raises(ValueError, match="no_such_method"):
        vtc.compress(model, "no_such_method", keep=0.5)
    assert anatomy(model) == before


def test_compressing_again_replaces_without_a_leak() -> None:
    model, inputs = tiny("llava"), prompt("llava", "ragged").inputs
    model(**inputs)
    before = anatomy(model)
    for setting in (READING, BOTH_STAGES, READING, Setting("uniform", 3)):
        compress(model, setting)
        model(**inputs)
    assert [len(k) for k in model.vtc.report.steps[-1].kept] == [3] * 4
    fresh = compress(tiny("llava"), Setting("uniform", 3))
    assert torch.equal(model(**inputs).logits, fresh(**inputs).logits)
    vtc.restore(model)
    assert anatomy(model) == before
