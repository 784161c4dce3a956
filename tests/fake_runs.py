"""Forwards on a pretended GPU, and what they must not do."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake import CAN_MOVE_SIZES, FakeDevice, sizes_on_device, without_placeholder_check
from methods import Setting
from reference import baseline
from torch import nn
from transformers import Idefics3Model
from transformers.modeling_outputs import BaseModelOutputWithPooling
from zoo import prompt, tiny

import vtc
from vtc.pruners.base import Loan

# their own get_image_features reads the device (which images are padding; sizes): its output is put in instead
READ_THE_DEVICE = ("idefics3", "smolvlm", "mistral3", "pixtral")


QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@contextmanager
def pretended(family: str, shape: str) -> Iterator[tuple[FakeDevice, nn.Module, dict[str, Any]]]:
    """A family's tiny model and prompt on the pretended GPU; enter the device after wrapping."""
    model, inputs, plain = tiny(family), prompt(family, shape).inputs, baseline(family, shape)
    if family in QWEN and not CAN_MOVE_SIZES:
        pytest.skip("this version of transformers computes the tower's positions where they can't be put on the device")
    gpu = FakeDevice()
    with ExitStack() as stack:
        if family in READ_THE_DEVICE:
            given = {k: v for k, v in inputs.items() if k in ("pixel_values", "image_sizes", "pixel_attention_mask")}
            out = model.base_model.get_image_features(**given, return_dict=True)
            made = out.pooler_output  # one tensor in older versions
            out = BaseModelOutputWithPooling(
                pooler_output=gpu.put(made) if isinstance(made, torch.Tensor) else [gpu.put(f) for f in made]
            )
            model.base_model.get_image_features = lambda *_, **__: out
        if family == "smolvlm" and hasattr(model.base_model, "inputs_merger"):  # older versions: its own reads too
            model.base_model.inputs_merger = functools.partial(Idefics3Model.inputs_merger, model.base_model)
        stack.enter_context(without_placeholder_check(model, gpu))
        stack.enter_context(sizes_on_device(model, gpu))
        gpu.put_model(model)
        inputs = gpu.put_inputs(inputs)
        del inputs["attention_mask"]
        inputs["position_ids"] = gpu.put(plain.positions[..., : inputs["input_ids"].shape[1]])
        yield gpu, model, inputs


def stops_wait_for_nothing(family: str, pruner: vtc.Pruner, *layers: int) -> None:
    """A forward of `family` on the pretended GPU, with a method that prunes before decoder layers `layers`."""
    with pretended(family, "one" if family.startswith("qwen") else "pair") as (gpu, model, inputs):
        vtc.compress(model, pruner)
        with gpu:
            out = model(**inputs, use_cache=True)
        assert out.logits.device.type == "cuda"
        assert [(s.stage, s.layer) for s in model.vtc.report.steps] == [("decoder", layer) for layer in layers]
        vtc.restore(model)


def run(setting: Setting, family: str, shape: str, counts: list[int]) -> None:
    with pretended(family, shape) as (gpu, model, inputs):
        vtc.compress(model, setting.pruner, keep=setting.keep, **setting.params)
        with gpu:
            out = model(**inputs, use_cache=True)
            cache = out.past_key_values
            width = inputs["input_ids"].shape[1]
            batch = inputs["input_ids"].shape[0]
            step = {"input_ids": gpu.put(torch.zeros(batch, 1, dtype=torch.long)), "past_key_values": cache}
            positions = gpu.put(baseline(family, shape).positions[..., width : width + 1])
            for _ in range(2):
                decoded = model(**step, position_ids=positions, use_cache=True).logits
        assert out.logits.device.type == decoded.device.type == "cuda"
        assert out.logits.shape[:2] == (batch, width)
        report = model.vtc.report
        assert report.tokens_total == sum(counts)
        expected = sum(map(setting.kept, counts))
        assert report.tokens_kept == expected
        held = cache.layers[-1].keys.shape[-2]
        stops = [stop for p in model.vtc.pipeline for stop in p.stops(len(cache.layers))]
        lent = any(isinstance(stop, Loan) for stop in stops)  # such layers hold fewer, each its own number
        if family not in ("llava_sliding",) and not lent:
            assert held == width - (sum(counts) - expected) // batch + 2
        vtc.restore(model)


def counts_of(family: str, shape: str) -> list[int]:
    """Tokens of each span, from the rows themselves."""
    report = SimpleNamespace(lengths=[])
    model = tiny(family)
    with vtc.compressed(model, "random", keep=1.0):
        model(**prompt(family, shape).inputs)
        report.lengths = [len(s.columns) for s in model.vtc.report.spans]
    return report.lengths
