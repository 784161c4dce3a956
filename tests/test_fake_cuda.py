"""Contract 7: no host sync and no device mixing on the way of a forward, shown on a pretended GPU."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake import CAN_MOVE_SIZES, FakeDevice, sizes_on_device, without_placeholder_check
from methods import BOTH_STAGES, IN_THE_TOWER, READING, SETTINGS, Setting, cells
from reference import baseline
from torch import nn
from transformers import Idefics3Model
from transformers.modeling_outputs import BaseModelOutputWithPooling
from zoo import FAMILIES, prompt, tiny

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")
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
        if family not in ("llava_sliding",):
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


@pytest.mark.parametrize(("setting", "family"), cells(SETTINGS, FAMILIES))
def test_a_forward_waits_for_nothing(setting: Setting, family: str) -> None:
    if any(c.adaptive_count for c in setting.classes):
        pytest.skip("an adaptive count is data and has to be read")
    pipeline = vtc.parse(setting.pruner, keep=setting.keep, **setting.params)
    if family in READ_THE_DEVICE and any(s.part == "encoder" for p in pipeline for s in p.signals):
        pytest.skip("its tower's output is put in, so the tower has no signals")
    pipeline = vtc.parse(setting.pruner, keep=setting.keep, **setting.params)
    if family in READ_THE_DEVICE and any(signal.part == "encoder" for p in pipeline for signal in p.signals):
        pytest.skip("the tower does not run here, so there is nothing to read of it")
    run(setting, family, "one", counts_of(family, "one"))


@pytest.mark.parametrize(
    ("setting", "family"), cells([BOTH_STAGES, READING, IN_THE_TOWER], [f for f in FAMILIES if f not in QWEN])
)
def test_a_batch_waits_for_nothing_but_its_layout(setting: Setting, family: str) -> None:
    """Which sample an image belongs to is read once from a real batch; here images are spread evenly."""
    run(setting, family, "pair", counts_of(family, "pair"))


@pytest.mark.parametrize("family", ["llava_onevision", *QWEN])
def test_a_video_waits_for_nothing(family: str) -> None:
    setting = Setting("random(keep=0.5) + random(layer=2, keep=0.25)")
    run(setting, family, "clip", counts_of(family, "clip"))


def test_the_pretended_gpu_notices_a_sync_and_a_mixed_device() -> None:
    """The tool itself: what must raise does raise."""
    gpu = FakeDevice()
    x = gpu.put(torch.zeros(4, 4))
    with gpu:
        for sync in (x.sum().item, x.tolist, lambda: bool((x > 0).any()), lambda: x[x > 0]):
            with pytest.raises(Exception, match=r"aten\.|Dynamic|data-dependent"):
                sync()
        with pytest.raises(Exception, match="same device"):
            x + torch.ones(4, 4)
        assert (x + torch.ones(4, 4, device="cuda")).device.type == "cuda"
        assert torch.arange(3).tolist() == [0, 1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("setting", "family"), cells([BOTH_STAGES, READING, IN_THE_TOWER], FAMILIES))
def test_on_a_real_gpu_the_same_tokens_are_kept(setting: Setting, family: str) -> None:
    model, inputs = tiny(family), prompt(family, "text_row").inputs
    kept = []
    for device in ("cpu", "cuda"):
        copied = copy.deepcopy(model).to(device)
        with vtc.compressed(copied, setting.pruner):
            logits = copied(**{k: v.to(device) for k, v in inputs.items()}).logits.cpu()
            kept.append((logits, copied.vtc.report.steps))
    for a, b in zip(kept[0][1], kept[1][1], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.kept, b.kept, strict=True))
    assert torch.allclose(kept[0][0], kept[1][0], atol=1e-2)
