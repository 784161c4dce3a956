"""What methods read of attention calls: mean queries, values, crops; against brute force over the real q, k, v."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from vision_tools import (
    CLASS_TOKEN,
    Norm,
    arguments,
    features,
    own_attention,
    pad_segments,
    ready,
    record,
    token_patches,
)
from zoo import FAMILIES, prompt, shapes_of, tiny

import vtc
from vtc.models.layout.layouts_by_family import VisionCall
from vtc.models.layout.model_parts import locate
from vtc.models.tower.captures_needed import layer_of
from vtc.models.tower.packed_segments import Segments
from vtc.models.tower.signals_from_attention import cls_attention, encoder_rows, mean_attention
from vtc.models.tower.tower_hooks import VisionSide
from vtc.pruners.base import Stop
from vtc.pruners.signals import DecoderValues, EncoderAttention, EncoderKeys, EncoderValues, Signal
from vtc.pruners.visual_tokens import VisualTokens

pytestmark = pytest.mark.usefixtures("no_grad")
CELLS = [
    (name, shape, "video" if shape == "video" else "image")
    for name, family in FAMILIES.items()
    for shape in shapes_of(family, ("sizes", "ragged", "video"))
    if shape != "ragged" or "sizes" not in shapes_of(family)
]


def brute(query: Tensor, key: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """Key by key: the row of the mean of the queries that see it, over the keys it sees itself; `[H, T]`."""
    found = torch.zeros(query.shape[0], key.shape[1])
    for j in range(key.shape[1]):
        mean = query[:, seen[:, j] & seen.any(0)].mean(1)  # padding is seen by nobody
        logits = (key @ mean[..., None])[..., 0] * scaling
        row = logits[:, seen[j]].softmax(-1) * int(seen[j].sum())
        found[:, j] = row[:, int(seen[j, :j].sum())] if seen[j, j] else 0
    return found


@pytest.mark.parametrize(("name", "shape", "modality"), CELLS)
def test_mean_queries_keys_and_values_of_every_tower(name: str, shape: str, modality: str) -> None:
    parts, inputs = locate(ready(name)), prompt(name, shape).inputs
    signals: list[Signal] = [
        EncoderAttention(layer=0, queries="mean"),
        EncoderAttention(layer=0, queries="mean", of="values"),
        EncoderValues(layer=0, heads="mean"),
        EncoderAttention(layer=0, queries="global"),
        EncoderKeys(layer=0, heads="mean"),
    ]
    rows: list[list[Tensor]] = [[] for _ in signals]
    prefix = parts.config.vision_config.model_type in CLASS_TOKEN

    def attend(i: int, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float) -> Tensor:
        logits = q @ k.transpose(2, 3) * scaling
        seen = torch.ones(q.shape[0], q.shape[2], k.shape[2], dtype=torch.bool)
        if mask is not None:
            seen = (mask if mask.dtype == torch.bool else mask == 0).expand(q.shape[0], 1, *logits.shape[2:])[:, 0]
            logits = logits.masked_fill(~seen[:, None], float("-inf"))
        weights = logits.softmax(-1)
        if i == 0:
            for b in range(len(q)):
                mean = brute(q[b], k[b], seen[b], scaling).T
                rows[0].append(mean)
                rows[1].append(brute(v[b], v[b], seen[b], 1.0).T)
                rows[2].append(v[b].mean(0))
                rows[3].append(weights[b, :, 0].T if prefix else mean)
                rows[4].append(k[b].mean(0))
        return (weights @ v).transpose(1, 2)

    with own_attention(parts, attend):
        features(parts.core, inputs, modality)
    _, found = record(parts, inputs, modality, signals=signals)
    for i, place in enumerate(token_patches(parts, inputs, modality, found.layouts())):
        for signal, given in zip(signals, rows, strict=True):
            want = torch.cat(given)[place.clamp(min=0)] * (place >= 0)[..., None]
            if isinstance(signal, EncoderAttention):
                want = want.mean(1).T
            elif name == "llava_onevision":  # resampled behind the projector: only the mean of a token is defined
                want = want.mean(1, keepdim=True)
            have = found.signals[signal][i]
            assert have.shape == want.shape
            assert torch.allclose(have, want, atol=1e-4, rtol=1e-4), (signal, (have - want).abs().max())


@pytest.mark.parametrize(("lengths", "padded"), [([5, 5, 5], False), ([7, 1, 3], False), (None, False), (None, True)])
def test_segments_are_rows_by_themselves(
    lengths: list[int] | None, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if padded:
        pad_segments(monkeypatch)
    sizes = lengths or [4, 0, 6]
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    segments = Segments(ids, 3, max(sizes), lengths)
    q, k, v = (torch.randn(1, 2, len(ids), 4) for _ in range(3))
    starts = np.cumsum([0, *sizes])
    for kind in ("mean", "mean of values", "cls", "cls of values", "received", "mean values"):
        both = encoder_rows(kind, q, k, v, None, 0.3, segments)
        for a, b in itertools.pairwise(starts):
            if b > a:
                alone = encoder_rows(kind, q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], None, 0.3)
                assert torch.allclose(both[:, a:b], alone, atol=1e-6), kind
    blocks = (ids[:, None] == ids)[None, None]
    assert torch.allclose(mean_attention(q, k, blocks, 0.3), mean_attention(q, k, None, 0.3, segments), atol=1e-5)
    padding = torch.arange(8) < torch.tensor([8, 5])[:, None]
    q, k = torch.randn(2, 2, 8, 4), torch.randn(2, 2, 8, 4)
    masked = mean_attention(q, k, padding[:, None, None], 0.3)
    assert torch.allclose(masked[1, :, :5], mean_attention(q[1:, :, :5], k[1:, :, :5], None, 0.3)[0], atol=1e-5)
    assert not masked[1, :, 5:].any()
    assert torch.allclose(cls_attention(q, k, None, 0.3).sum(-1), torch.ones(2, 2))


def test_the_mean_rows_average_is_one_whatever_the_window() -> None:
    x = torch.randn(1, 3, 9, 4)
    assert torch.allclose(mean_attention(x, x, None, 1.0).mean(-1), torch.ones(1, 3))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: EncoderAttention(of="keys"), "of must be"),
        (lambda: EncoderAttention(of="values"), "needs queries"),
        (lambda: EncoderKeys(heads="all"), "heads must be"),
        (lambda: EncoderValues(heads="all"), "heads must be"),
    ],
)
def test_signals_that_are_not_there_are_refused(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


@dataclass(kw_only=True)
class Remembers(Norm):
    """Two stops with different signals that hand a number on; every read is compared with the plain tower's values."""

    seen: list[Any] = field(default_factory=list)
    wanted: ClassVar[tuple[Signal, ...]] = (EncoderValues(layer=0, heads="mean"),)

    def tower_stops(self, stop: Stop, last: int) -> tuple[Stop, ...]:
        return Stop("vision", 1, 0.6), Stop("vision", last, 0.3)

    def signals_at(self, stop: Stop) -> tuple[Signal, ...]:
        return (*self.wanted, EncoderAttention(layer=(stop.layer or 1) - 1, queries="mean"))

    def score(self, tokens: VisualTokens) -> Tensor:
        count = tokens.state["count"] = tokens.state.get("count", 0) + 1
        self.seen.append((tokens.layer, tokens.last, count, tokens.ids, tokens.read(self.wanted[0])))
        assert tokens.read(self.signals_at(Stop("vision", tokens.layer, None))[1]).isfinite().all()
        return super().score(tokens)


@pytest.mark.parametrize("name", ["llava", "llava_next", "gemma3", "qwen2_5_vl"])
def test_state_is_of_one_forward_and_signals_are_freed_when_read(name: str) -> None:
    parts, inputs = locate(ready(name)), prompt(name, "ragged").inputs
    pruner = Remembers(keep=0.3)
    _, plain = record(parts, inputs, signals=pruner.wanted)
    side = VisionSide(parts, [(pruner, pruner.stops(6)[0])]).attach()
    given, held = arguments(parts.core, inputs, "image"), []
    parts.tower.register_forward_hook(lambda *_: held.append(side._run().captured))
    for _ in range(2):
        side.record("image", given, lambda: features(parts.core, inputs))
    side.detach()
    last = side.last
    assert [s[:3] for s in pruner.seen] == [(1, last, 1), (last, last, 2)] * 2
    for _, _, _, ids, values in pruner.seen:
        for row, want in enumerate(plain.signals[pruner.wanted[0]]):
            real = ids[row] >= 0
            assert torch.allclose(values[row][real], want[ids[row][real]], atol=1e-5)
    assert held == [{}, {}], "nothing is kept behind the last cut that reads it"


@dataclass(kw_only=True)
class ReadsValues(vtc.Pruner):
    """Keeps the first tokens, and remembers the values of layer 1."""

    layer: int = 2
    stage: ClassVar[str] = "decoder"
    ragged: ClassVar[bool] = True
    signals: ClassVar[tuple[Signal, ...]] = (DecoderValues(),)
    seen: list[Any] = field(default_factory=list)

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        found = tokens.read(self.signals[0]), tokens.text(self.signals[0]), tokens.text_valid(), tokens.ids
        self.seen.extend(found)
        return torch.arange(k).expand(len(tokens.counts), -1)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_decoder_values_are_those_of_the_cache(family: str) -> None:
    model, inputs = tiny(family), prompt(family, "ragged").inputs
    held = model(**inputs, use_cache=True).past_key_values.layers[1].values  # [B, H_kv, L, d]
    pruner = ReadsValues(keep=3)
    with vtc.compressed(model, pruner):
        model(**inputs)
        spans = model.vtc.report.spans
    values, text, valid, ids = pruner.seen
    taken = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for row, span in enumerate(spans):
        n = len(span.columns)
        assert torch.allclose(values[row, :n], held[span.sample][:, span.columns].transpose(0, 1), atol=1e-5)
        assert not values[row, n:].any()
        assert (ids[row] >= 0).sum() == n
        taken[span.sample, span.columns] = True
    for b in range(len(text)):
        mine = inputs["attention_mask"][b].bool() & ~taken[b]
        assert torch.allclose(text[b][valid[b]], held[b][:, mine].transpose(0, 1), atol=1e-5)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize("size", [(56, 56), (40, 90), (90, 40), (50, 56), (20, 20), (28, 30)])
def test_crops_of_a_mosaic_are_the_towers_rows(name: str, size: tuple[int, int]) -> None:
    """Each token's crop by the layout, against row numbers that go through the model's own packing."""
    parts = locate(ready(name))
    call = VisionCall(parts.core, "image", {"image_sizes": torch.tensor([size])})
    rows = parts.family.rows(call)[0]
    x = torch.arange(rows, dtype=torch.float32)[:, None, None].expand(-1, 16, 1)
    packed = parts.family.align(call, x + 1)[0][:, 0, 0]  # 0 at newlines
    call.lengths = [len(packed)]
    layout = parts.family.layouts_of(call)[0]
    assert [g.kind for g in layout.grids] == ["base", "mosaic"]
    content = ~layout.newline
    assert torch.equal(content, packed > 0)
    assert torch.equal(torch.from_numpy(layout.parts())[content], packed[content].long() - 1)
    assert len(set(packed[content].tolist())) > 1


@pytest.mark.parametrize(("share", "layer"), [(5 / 24, 1), (0.5, 2), (0.99, 3)])
def test_a_share_of_the_depth_is_a_layer(share: float, layer: int) -> None:
    """The tiny towers have four layers; 5 / 24 of CLIP's 24 is 5."""
    assert [layer_of(EncoderAttention(layer=5 / 24), 9, depth) for depth in (24, 32, 5)] == [5, 7, 1]
    parts, inputs = locate(ready("llava")), prompt("llava", "one").inputs
    _, found = record(parts, inputs, signals=[EncoderAttention(layer=share), EncoderAttention(layer=layer)])
    a, b = found.signals.values()
    assert torch.equal(a[0], b[0])
    assert a[0].std() > 0
