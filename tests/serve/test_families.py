"""The engine under every family's own processor: greedy answers are ``generate``'s, counts are the report's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from processors import PROCESSORS
from serving import asking, templated
from zoo import tiny

import vtc
from vtc.eval.vlm.loading import Loaded
from vtc.eval.vlm.prompts import message_inputs
from vtc.serve.generation.engine import Engine, Stopped
from vtc.serve.requests.chat_request import Sampling
from vtc.serve.requests.limits import Limits
from vtc.serve.requests.messages import placeholders_of, read_messages
from vtc.serve.requests.pruning_choice import Choice
from vtc.serve.requests.refusal import Refusal
from vtc.serve.settings import ServerSettings

PICTURES = [Image.effect_noise(size, 90).convert("RGB") for size in ((64, 64), (96, 48))]
CHOICES = (Choice(), Choice("uniform(keep=0.5)", "uniform", 0.5), Choice("dart(keep=3, layer=1)", "dart(layer=1)", 3))
GREEDY = Sampling(temperature=0, max_tokens=4)


@pytest.mark.parametrize("family", PROCESSORS)
@pytest.mark.parametrize("pictures", [0, 2])
def test_answers_and_counts(family: str, pictures: int) -> None:
    model, processor = tiny(family), PROCESSORS[family]()
    messages = asking("what is it", *PICTURES[:pictures])
    engine = Engine(Loaded(model, processor, family, ""), Limits())
    chat = read_messages(messages, Limits(), placeholders_of(processor))
    chat.bring(Limits())
    inputs = engine.inputs_of(chat)
    wanted = message_inputs(processor, templated(messages, *PICTURES[:pictures]))
    assert all(torch.equal(inputs[name], value) for name, value in wanted.items() if isinstance(value, torch.Tensor))
    counted = vtc.compress(tiny(family), "uniform", keep=1.0)  # whose report counts all
    counted.generate(**wanted, max_new_tokens=1)
    for choice in CHOICES if pictures else CHOICES[::2]:
        found = engine.generate(inputs, choice, GREEDY)
        other: Any = tiny(family)
        if choice.pruner is not None:
            vtc.compress(other, choice.spec)
        length = wanted["input_ids"].shape[1]
        ids = other.generate(**wanted, do_sample=False, max_new_tokens=4)[0, length:]
        assert found.text == processor.decode(ids, skip_special_tokens=True)
        assert (found.prompt_tokens, found.tokens) == (length, len(ids))
        assert found.measured.total == counted.vtc.report.tokens_total
        kept = found.measured.total if choice.pruner is None else other.vtc.report.tokens_kept
        assert found.measured.kept == kept
        assert (kept > 0) == (pictures > 0)


@pytest.mark.parametrize("family", PROCESSORS)
def test_what_stands_for_a_picture_is_refused_in_texts(family: str) -> None:
    processor = PROCESSORS[family]()
    words = placeholders_of(processor)
    assert processor.image_token in words
    for word in words:
        with pytest.raises(Refusal, match="stands for a picture"):
            read_messages([{"role": "user", "content": f"what is {word}"}], Limits(), words)


def test_positions_are_those_asked_for() -> None:
    model, choice = tiny("llava"), CHOICES[1]
    Engine(Loaded(model, PROCESSORS["llava"](), "m", ""), Limits(), "compact").set_up(choice)
    assert model.vtc.config.positions == "compact"
    several_axes = Engine(Loaded(tiny("qwen2_5_vl"), PROCESSORS["qwen2_5_vl"](), "m", ""), Limits(), "compact")
    with pytest.raises(ValueError, match="use 'keep'"):
        several_axes.set_up(choice)
    with pytest.raises(ValueError, match="--positions must be keep or compact, got 'packed'"):
        ServerSettings(name="m", positions="packed")


def test_a_method_that_fails_leaves_the_stock_model() -> None:
    model = tiny("llava")
    engine = Engine(Loaded(model, PROCESSORS["llava"](), "m", ""), Limits())
    chat = read_messages([{"role": "user", "content": "hi"}], Limits())
    inputs = engine.inputs_of(chat)
    plain = engine.generate(inputs, Choice(), GREEDY).text
    with pytest.raises(Refusal, match="can't be set up"):
        engine.generate(inputs, Choice("dart(keep=3, layer=99)", "dart(layer=99)", 3), GREEDY)
    assert not hasattr(model, "vtc")
    assert engine.generate(inputs, Choice(), GREEDY).text == plain
    with pytest.raises(Stopped):
        engine.generate(inputs, Choice(), Sampling(temperature=0, max_tokens=50), unwanted=lambda: True)
