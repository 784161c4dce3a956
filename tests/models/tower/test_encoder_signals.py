"""Encoder signals as methods of the input stage read them: many layers at once, tile by tile, heads apart or joint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from fake import FakeDevice
from torch import Tensor
from tower_spy import Spy
from vision_tools import ready, token_patches
from zoo import prompt

import vtc
from vtc.models.layout.model_parts import locate
from vtc.models.tower.signals_from_attention import encoder_rows
from vtc.pruners.signals import EncoderAttention, EncoderKeys, EncoderQueries, Signal

pytestmark = pytest.mark.usefixtures("no_grad")


class JointSpy(Spy):
    """Notes attention without head split, and queries, too."""

    def attend(self, i: int, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float) -> Tensor:
        query, key = (x.transpose(1, 2).flatten(2) for x in (q, k))
        logits = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        if mask is not None:
            logits = logits.masked_fill(~mask[:, 0], float("-inf"))
        weights = logits.softmax(-1)
        self.add("queries", i, query)
        self.add("joint cls", i, weights[:, 0, :, None])
        self.add("joint received", i, weights.mean(1)[..., None])
        return super().attend(i, module, q, k, v, mask, scaling)


@dataclass(kw_only=True)
class Reader(vtc.Pruner):
    """Keeps the first tokens and remembers its signals."""

    name: ClassVar[str] = "reader"
    asked: tuple[Signal, ...] = ()
    seen: dict[Any, Tensor] = field(default_factory=dict)
    ragged = True

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        return self.asked

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        self.seen = {s: tokens.read(s) for s in self.asked} | {"ids": tokens.ids}
        return torch.arange(k).expand(len(tokens.counts), -1)


def read(family: str, shape: str, signals: tuple[Signal, ...]) -> tuple[dict[Any, Tensor], JointSpy, list[Tensor]]:
    """What a method reads, what the tower's attention saw, and each span's patches in the tower's rows."""
    model, reader, inputs = ready(family), Reader(keep=1, asked=signals), prompt(family, shape).inputs
    with vtc.compressed(model, reader):
        model(**inputs)
        layouts = model.vtc.report.layouts
    parts = locate(model)
    return reader.seen, JointSpy(parts, inputs, "image"), token_patches(parts, inputs, "image", layouts)


@pytest.mark.parametrize(
    ("family", "shape"), [("llava", "ragged"), ("llava_next", "sizes"), ("internvl", "ragged"), ("qwen2_5_vl", "sizes")]
)
def test_heads_and_layers_at_once(family: str, shape: str) -> None:
    """Every layer, its heads apart, of the class token (of each tile) and of all queries."""
    with_cls = family != "qwen2_5_vl"
    kinds = ("cls", "received") if with_cls else ("received",)
    signals = {EncoderAttention(layer=i, queries=kind): (kind, i) for i in range(4) for kind in kinds}
    seen, spy, places = read(family, shape, tuple(signals))
    assert len({len(p) for p in places}) > 1 or shape == "ragged"
    for signal, (kind, layer) in signals.items():
        for row, place in enumerate(places):
            content = seen["ids"][row][seen["ids"][row] >= 0]
            want = spy.at(kind, layer, place[content]).mean(1).T
            have = seen[signal][row]
            assert have.shape[0] == want.shape[0] == 4
            assert torch.allclose(have[:, : len(content)], want, atol=1e-5)
            assert (have[:, len(content) :] == 0).all()
    if family == "llava_next":  # each tile's class token spends its own attention: the base picture is one tile
        first = seen[EncoderAttention(layer=3, queries="cls")][0][:, :16].sum(-1)
        own = spy.rows["cls", 3][0].view(-1, 17, 4)[0, 1:].sum(0)
        assert torch.allclose(first, own, atol=1e-5)


@pytest.mark.parametrize(("family", "shape"), [("llava", "ragged"), ("llava_next", "sizes")])
def test_joint_heads_and_queries(family: str, shape: str) -> None:
    """PruMerge's class-token attention: heads side by side, over the class token and all patches (of its tile)."""
    joint = EncoderAttention(layer=-1, queries="cls", joint_heads=True)
    auto, received = EncoderAttention(joint_heads=True), EncoderAttention(queries="received", joint_heads=True)
    queries, keys = EncoderQueries(layer=-1), EncoderKeys(layer=-1)
    seen, spy, places = read(family, shape, (joint, auto, received, queries, keys, EncoderAttention(layer=-1)))
    for row, place in enumerate(places):
        content = seen["ids"][row][seen["ids"][row] >= 0]
        n, place = len(content), place[content]
        for signal, kind, layer in ((joint, "joint cls", 3), (auto, "joint cls", 2), (received, "joint received", 2)):
            assert seen[signal].shape[1] == 1
            assert torch.allclose(seen[signal][row][:, :n], spy.at(kind, layer, place).mean(1).T, atol=1e-5)
        for signal, kind in ((queries, "queries"), (keys, "keys")):
            assert torch.allclose(seen[signal][row][:n], spy.at(kind, 3, place), atol=1e-5)
    split = seen[EncoderAttention(layer=-1)].mean(1, keepdim=True)
    assert not torch.allclose(split, seen[joint], atol=1e-3)


def test_joint_heads_without_a_class_token() -> None:
    joint = EncoderAttention(joint_heads=True)
    seen, spy, places = read("llava_siglip", "ragged", (joint,))
    for row, place in enumerate(places):
        assert torch.allclose(seen[joint][row], spy.at("joint received", 2, place).mean(1).T, atol=1e-5)
    with pytest.raises(NotImplementedError, match="no class token"):
        vtc.compress(ready("llava_siglip"), Reader(keep=1, asked=(EncoderAttention(queries="cls", joint_heads=True),)))


@pytest.mark.parametrize("kind", ["joint cls", "joint received", "queries"])
def test_they_wait_for_nothing(kind: str) -> None:
    gpu = FakeDevice()
    q, k, v = (gpu.put(torch.zeros(2, 4, 17, 12)) for _ in range(3))
    with gpu:
        rows = encoder_rows(kind, q, k, v, None, 12**-0.5)
    assert rows.device.type == "cuda"
    assert rows.shape == (2, 17, 48 if kind == "queries" else 1)
