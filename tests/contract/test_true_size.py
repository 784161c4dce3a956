"""Models at their true size: wrapping on ``meta``, forwards on a pretended GPU, FLOPs. No weights, seconds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from anatomy import anatomy
from fake import CAN_MOVE_SIZES, FakeDevice, sizes_on_device, without_placeholder_check
from methods import asked
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from zoo.sizes import SIZES, on_meta

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")
# a parameter count per model, in billions, so that "true size" is a fact
BILLIONS = {
    "llava-1.5-7b": 7.06,
    "llava-v1.6-mistral-7b": 7.57,
    "llava-onevision-qwen2-7b": 8.03,
    "qwen2-vl-7b": 8.29,
    "qwen2.5-vl-7b": 8.29,
    "qwen3-vl-8b": 8.77,
    "internvl3-8b": 7.40,
    "idefics3-8b": 7.67,
    "smolvlm2-2.2b": 2.16,
    "gemma-3-4b": 4.30,
    "mistral-small-3.1-24b": 23.34,
}


@pytest.mark.parametrize("name", SIZES)
def test_wrapping_on_meta_and_back(name: str) -> None:
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(BILLIONS[name], abs=0.02)
    before = anatomy(model)
    vtc.compress(model, "dart(keep=0.5) + fastv(layer=2, keep=64) + random(layer=9, keep=16)")
    assert anatomy(model) != before
    vtc.restore(model)
    assert anatomy(model) == before


def llava_prompt(gpu: FakeDevice, tokens: int = 640) -> dict[str, Any]:
    ids = torch.full((1, tokens), 5)
    return {"input_ids": gpu.put(ids), "pixel_values": gpu.put(torch.empty(1, 3, 336, 336))}


def columns(*kept: int, text: int = 64) -> list[int]:
    """Columns in the cache of each of the 32 or 28 layers, as (layers, visual) pairs flattened."""
    return [text + k for n, k in zip(kept[::2], kept[1::2], strict=True) for _ in range(n)]


@pytest.mark.share(3)
@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        ("random(keep=64)", columns(32, 64)),
        ("random(keep=0.5) + fastv(layer=2, keep=64)", columns(2, 288, 30, 64)),
        ("dart(keep=128) + random(layer=16, keep=32)", columns(2, 576, 14, 128, 16, 32)),
        ("random(at=vision, layer=12, keep=200) + fastv(layer=5, keep=50)", columns(5, 200, 27, 50)),
    ],
)
def test_llava_7b(pipeline: str, expected: list[int]) -> None:
    gpu, model = FakeDevice(), on_meta("llava-1.5-7b").to(torch.float16)
    gpu.put_model(model)
    vtc.compress(model, pipeline)
    inputs = llava_prompt(gpu)
    inputs["pixel_values"] = gpu.put(torch.empty(1, 3, 336, 336, dtype=torch.float16))
    with without_placeholder_check(model, gpu), gpu:
        out = model(**inputs, use_cache=True)
    assert out.logits.shape == (1, 640, 32064)
    assert [layer.keys.shape[-2] for layer in out.past_key_values.layers] == expected
    assert out.past_key_values.get_seq_length() == 640


@pytest.mark.share(3)
@pytest.mark.parametrize(
    "pipeline",
    [
        "random(keep=200)",
        "fastv(layer=3, keep=100)",
        "dart(keep=0.5) + random(layer=14, keep=0.1)",
        "random(at=vision, layer=16, keep=0.25)",
    ],
)
def test_qwen2_5_vl_7b(pipeline: str) -> None:
    if not CAN_MOVE_SIZES:
        pytest.skip("this version of transformers computes the tower's positions where they can't be put on the device")
    gpu, model = FakeDevice(), on_meta("qwen2.5-vl-7b").to(torch.bfloat16)
    gpu.put_model(model)
    methods = list(vtc.parse(pipeline))
    vtc.compress(model, pipeline)
    grid = (1, 52, 74)  # a 728 x 1036 picture: 962 tokens
    tokens = 52 * 74 // 4
    inputs = {
        "input_ids": gpu.put(torch.empty(1, tokens + 50, dtype=torch.long)),
        "pixel_values": gpu.put(torch.empty(52 * 74, 3 * 2 * 14 * 14, dtype=torch.bfloat16)),
        "image_grid_thw": torch.tensor([grid]),
        "position_ids": gpu.put(torch.empty(3, 1, tokens + 50, dtype=torch.long)),
    }
    with without_placeholder_check(model, gpu), sizes_on_device(model, gpu), gpu:
        out = model(**inputs, use_cache=True)
    held = [layer.keys.shape[-2] - 50 for layer in out.past_key_values.layers]
    expected = []
    for i in range(28):
        done = [m for m in methods if m.stage != "decoder" or m.layer <= i]
        expected.append(asked(done[-1].keep, tokens) if done else tokens)
    assert held == expected
    assert model.vtc.report.mean_tokens_per_layer == pytest.approx(sum(expected) / 28)


def text_flops(model: nn.Module, gpu: FakeDevice) -> int:
    """FLOPs of the text model in one forward over 640 tokens, 576 of them visual."""
    with without_placeholder_check(model, gpu), gpu, FlopCounterMode(display=False, depth=4) as counter:
        model(**llava_prompt(gpu), use_cache=True, logits_to_keep=1)
    counts = counter.get_flop_counts()
    name = next(k for k in counts if k.endswith("model.language_model"))
    return sum(counts[name].values())


def layer_flops(tokens: int) -> int:
    """A Llama-7B layer over `tokens`: four square projections, three of the MLP, and attention (scores and values)."""
    d, m = 4096, 11008
    return 2 * tokens * (4 * d * d + 3 * d * m) + 4 * tokens * tokens * d


def test_flops_of_llava_7b() -> None:
    gpu, model = FakeDevice(), on_meta("llava-1.5-7b")
    gpu.put_model(model)
    full = text_flops(model, gpu)
    assert full == pytest.approx(8.50e12, rel=0.01)
    assert full == pytest.approx(32 * layer_flops(640), rel=0.001)
    for pipeline, expected in (
        ("random(keep=64)", 32 * layer_flops(128)),
        ("random(keep=1.0)", 32 * layer_flops(640)),
        ("random(layer=2, keep=64)", 2 * layer_flops(640) + 30 * layer_flops(128)),
        ("random(keep=288) + random(layer=16, keep=16)", 16 * layer_flops(352) + 16 * layer_flops(80)),
    ):
        with vtc.compressed(model, pipeline):
            assert text_flops(model, gpu) == pytest.approx(expected, rel=0.001), pipeline
