"""No host sync and no device mixing inside the tower, on a pretended GPU; and towers with packed (flash) attention."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from fake import FakeDevice, sizes_on_device
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from vision_tools import Norm, arguments, features, ready, record, rows_of
from zoo import prompt

from vtc.models.layout.model_parts import Parts, locate
from vtc.models.tower.tower_hooks import VisionSide
from vtc.pruners.signals import (
    EncoderAttention,
    EncoderFeatures,
    EncoderKeys,
    EncoderSegments,
    EncoderSpecial,
    EncoderValues,
    PreProjector,
    Signal,
)

pytestmark = pytest.mark.usefixtures("no_grad")
SIGNALS: list[Signal] = [
    EncoderAttention(),
    EncoderAttention(layer=0, queries="received"),
    EncoderAttention(layer=1, queries="received"),
    EncoderKeys(layer=1),
    EncoderValues(),
    EncoderFeatures(layer=-4),
    PreProjector(),
    EncoderSpecial(of="queries"),
]


class Reader(Norm):
    """Reads every kind of signal at its stop."""

    signals = (
        EncoderAttention(),
        EncoderAttention(layer=0, queries="received"),
        EncoderKeys(),
        EncoderFeatures(),
        EncoderSpecial(),
        EncoderSegments(),
    )

    def score(self, tokens: Any) -> Tensor:
        read = [tokens.read(s) for s in self.signals]
        segment = read[5][:, :, 0, 0]
        near = ((segment[:, None] == segment[:, :, None]) & tokens.valid[:, None]).sum(2)
        near = near * (1 + read[4].sum((1, 2, 3)))[:, None]
        mean = read[0].mean(1) + read[1].mean(1) + read[2].float().mean((2, 3))
        return mean + read[3].float().norm(dim=-1).sum(2) + near


PRUNERS = [Reader(layer=1, keep=0.6), Reader(layer=2, keep=3)]


@contextmanager
def interpolation_on_device(model: nn.Module, gpu: FakeDevice) -> Iterator[None]:
    """Qwen3's tower makes this from the grid too, on the grid's device."""
    module, name = sys.modules[type(model.base_model).__module__], "get_vision_interpolation_indices_and_weights"
    made = getattr(module, name, None)
    if made is None:
        yield
        return
    with mock.patch.object(module, name, lambda *a, **k: tuple(map(gpu.put, made(*a, **k)))):
        yield


@pytest.mark.parametrize(
    ("name", "shape", "modality", "pruned"),
    [
        ("llava", "ragged", "image", True),
        ("llava_next", "sizes", "image", True),
        ("llava_onevision", "sizes", "image", False),
        ("internvl", "ragged", "image", False),
        ("qwen2_5_vl", "sizes", "image", True),
        ("qwen2_5_vl", "video", "video", False),
        ("qwen3_vl", "sizes", "image", True),
    ],
)
def test_no_host_sync(name: str, shape: str, modality: str, pruned: bool) -> None:
    model, inputs = ready(name), prompt(name, shape).inputs
    parts, gpu = locate(model), FakeDevice()
    if hasattr(parts.tower, "get_window_index"):
        pytest.skip("the tower of this version of transformers waits for the device itself")
    pruners = PRUNERS if pruned else []
    _, plain = record(parts, inputs, modality, pruners, SIGNALS)
    with sizes_on_device(model, gpu), interpolation_on_device(model, gpu):
        gpu.put_model(model)
        given = gpu.put_inputs(inputs)
        side = VisionSide(parts, [(p, p.stops(6)[0]) for p in pruners], SIGNALS).attach()
        with gpu:
            output, found = side.record(
                modality, arguments(parts.core, given, modality), lambda: features(parts.core, given, modality)
            )
            assert found is not None
            assert set(dict(found.signals)) == set(SIGNALS)  # put in order when they are read
        side.detach()
    assert all(f.device.type == "cuda" for f in rows_of(output))
    assert found.lengths == plain.lengths
    assert found.layouts() == plain.layouts()
    for signal in SIGNALS:
        for a, b in zip(found.signals[signal], plain.signals[signal], strict=True):
            assert (a.device.type, a.shape, a.dtype) == ("cuda", b.shape, b.dtype)
    for a, b in zip(found.steps, plain.steps, strict=True):
        assert [(k.device.type, len(k)) for k in a.kept] == [("cuda", len(k)) for k in b.kept]


def packed(module: Any, q: Tensor, k: Tensor, v: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
    """What a variable-length flash kernel computes, with its keywords."""
    ends = kwargs.get("cu_seq_lens_q")
    if ends is None:
        return scaled_dot_product_attention(q, k, v, scale=kwargs["scaling"]).transpose(1, 2), None
    assert kwargs["max_length_q"] >= int((ends[1:] - ends[:-1]).max())
    parts = (x.split((ends[1:] - ends[:-1]).tolist(), 2) for x in (q, k, v))
    out = [scaled_dot_product_attention(*chunk, scale=kwargs["scaling"]) for chunk in zip(*parts, strict=True)]
    return torch.cat(out, 2).transpose(1, 2), None


def flash(parts: Parts) -> None:
    """Give the tower an implementation whose name says flash."""
    ALL_ATTENTION_FUNCTIONS.register("test_flash_attention", packed)
    config = copy.copy(parts.tower.config)
    config.__dict__["_attn_implementation_internal"] = "test_flash_attention"
    for module in parts.tower.modules():
        if hasattr(module, "config"):
            module.config = config


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize(
    ("name", "shape", "modality"),
    [
        ("llava", "ragged", "image"),
        ("llava_next", "ragged", "image"),
        ("qwen2_5_vl", "sizes", "image"),
        ("qwen2_5_vl", "video", "video"),
        ("qwen3_vl", "video", "video"),
    ],
)
def test_packed_attention(name: str, shape: str, modality: str, pruned: bool) -> None:
    parts, inputs = locate(ready(name)), prompt(name, shape).inputs
    pruners = PRUNERS if pruned else []
    output, want = record(parts, inputs, modality, pruners, SIGNALS)
    flash(parts)
    same, found = record(parts, inputs, modality, pruners, SIGNALS)
    kept = found.steps[-1].kept if pruned else [torch.arange(n) for n in found.lengths]
    for a, b, k in zip(rows_of(output), rows_of(same), kept, strict=True):
        assert torch.allclose(a[k], b[k], atol=1e-4)
    for signal in SIGNALS:
        for a, b in zip(found.signals[signal], want.signals[signal], strict=True):
            assert torch.allclose(a, b, atol=1e-4), signal
    for a, b in zip(found.steps, want.steps, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.kept, b.kept, strict=True))
