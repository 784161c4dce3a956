"""Encoder signals equal what a spying attention and plain hooks see, token by token, and the model does not notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from anatomy import anatomy
from torch import Tensor
from tower_spy import Spy
from vision_tools import (
    CLASS_TOKEN,
    Norm,
    features,
    ready,
    record,
    rows_of,
    token_patches,
)
from zoo import FAMILIES, prompt, shapes_of

from vtc.models.layout.model_parts import Parts, locate
from vtc.models.layout.vision_call_record import VisionRecord
from vtc.models.tower.tower_hooks import VisionSide
from vtc.pruners.base import Stop
from vtc.pruners.signals import (
    DecoderHidden,
    EncoderAttention,
    EncoderFeatures,
    EncoderKeys,
    EncoderValues,
    PreProjector,
    Signal,
)
from vtc.pruners.visual_tokens import VisualTokens

pytestmark = pytest.mark.usefixtures("no_grad")

RECEIVED = EncoderAttention(layer=0, queries="received")  # a windowed layer of Qwen2.5-VL
SIGNALS: list[Signal] = [
    EncoderAttention(),
    RECEIVED,
    EncoderKeys(layer=1),
    EncoderValues(),
    EncoderFeatures(layer=-4),
    EncoderFeatures(),
    PreProjector(),
]
CELLS = [
    (name, shape, "video" if shape == "video" else "image")
    for name, family in FAMILIES.items()
    for shape in shapes_of(family, ("sizes", "ragged", "video"))
    if shape != "ragged" or "sizes" not in shapes_of(family)
]


def compare(parts: Parts, spy: Spy, found: VisionRecord, inputs: dict[str, Any], modality: str) -> None:
    read = {"llava": 2, "llava_next": 2}.get(parts.config.model_type, 3)
    read = 3 if parts.config.vision_config.model_type == "pixtral" else read
    prefix = parts.config.vision_config.model_type in CLASS_TOKEN
    places = token_patches(parts, inputs, modality, found.layouts())
    several = parts.config.vision_config.model_type == "dinov2"  # layers that the projector reads side by side
    post_norm = parts.config.model_type in ("gemma3", "idefics3", "smolvlm", "internvl")
    for i, place in enumerate(places):
        auto = spy.at("cls" if prefix else "received", read, place).mean(1).T
        projected = [spy.at("features", layer, place) for layer in ((0, read) if several else (read,))]
        # both resample mosaics or frames after the projector: of patches that are merged only their mean is defined
        pairs = {
            SIGNALS[0]: auto,
            RECEIVED: spy.at("received", 0, place).mean(1).T,
            SIGNALS[2]: spy.at("keys", 1, place),
            SIGNALS[3]: spy.at("values", read, place),
            SIGNALS[4]: spy.at("features", 0, place),
            SIGNALS[5]: spy.at("features", read, place),
            SIGNALS[6]: spy.at("output", -1, place) if post_norm else torch.cat(projected, dim=-1),
        }
        for signal, want in pairs.items():
            have = found.signals[signal][i]
            if parts.config.model_type == "llava_onevision" and not isinstance(signal, EncoderAttention):
                want = want.mean(1, keepdim=True)
            assert have.shape == want.shape, (signal, have.shape, want.shape)
            assert torch.allclose(have, want, atol=1e-4, rtol=1e-4), (signal, (have - want).abs().max())


@pytest.mark.parametrize(("name", "shape", "modality"), CELLS)
def test_signals_are_what_the_tower_computes(name: str, shape: str, modality: str) -> None:
    model, inputs = ready(name), prompt(name, shape).inputs
    parts = locate(model)
    plain = rows_of(features(parts.core, inputs, modality))
    before = anatomy(model)
    output, found = record(parts, inputs, modality, signals=SIGNALS)
    assert anatomy(model) == before
    assert all(torch.equal(a, b) for a, b in zip(plain, rows_of(output), strict=True))
    compare(parts, Spy(parts, inputs, modality), found, inputs, modality)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_attention_equals_output_attentions_of_an_eager_model(name: str) -> None:
    inputs = prompt(name, "ragged").inputs
    eager = ready(name, "eager").base_model
    weights = eager.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
    _, found = record(locate(ready(name)), inputs, signals=[EncoderAttention(layer=1), EncoderAttention(layer=-1)])
    for signal, layer in ((EncoderAttention(layer=1), 1), (EncoderAttention(layer=-1), 3)):
        if name == "llava":
            want = weights[layer][:, :, 0, 1:]
        else:  # each token is 2 x 2 patches
            want = weights[layer].mean(2).unflatten(-1, (4, 2, 4, 2)).mean((3, 5)).flatten(2)
        assert torch.allclose(torch.stack(found.signals[signal]), want, atol=1e-5)


def test_received_attention_needs_no_square_matrix() -> None:
    from vtc.models.tower.packed_segments import ROWS, received_attention

    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, 2 * ROWS + 7, 4, generator=g) for _ in range(2))
    want = (q @ k.transpose(2, 3) * 0.5).softmax(-1).mean(2)
    assert torch.allclose(received_attention(q, k, None, 0.5), want, atol=1e-6)
    mask = torch.ones(1, q.shape[2]).bool()
    mask[:, 30:] = False
    short = (q @ k[:, :, :30].transpose(2, 3) * 0.5).softmax(-1).mean(2)
    assert torch.allclose(received_attention(q, k, mask, 0.5)[..., :30], short, atol=1e-6)


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
def test_signals_behind_a_pruned_tower_hold_zeros_at_dropped_tokens(name: str) -> None:
    parts, inputs = locate(ready(name)), prompt(name, "ragged").inputs
    _, found = record(parts, inputs, pruners=[Norm(keep=0.4)], signals=SIGNALS)
    _, plain = record(parts, inputs, signals=SIGNALS)
    for i, kept in enumerate(found.steps[0].kept):
        gone = torch.ones(found.lengths[i], dtype=torch.bool).index_fill(0, kept, False)
        for signal in (EncoderAttention(), EncoderValues(), PreProjector()):
            value = found.signals[signal][i]
            value = value.T if isinstance(signal, EncoderAttention) else value
            assert (value[gone] == 0).all()
            assert (value[kept] != 0).any(-1).all()
        assert torch.equal(found.signals[RECEIVED][i], plain.signals[RECEIVED][i])  # of a layer before


class Reader(Norm):
    """Reads at a vision stop."""

    seen: dict[str, Tensor]
    signals = (EncoderAttention(), EncoderKeys(layer=0), EncoderFeatures())

    def score(self, tokens: VisualTokens) -> Tensor:
        self.seen = {type(s).__name__: tokens.read(s) for s in self.signals}
        self.seen["features"], self.seen["ids"] = tokens.features, tokens.ids
        return super().score(tokens)


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
def test_reads_inside_the_tower_are_of_the_tokens_left(name: str) -> None:
    shape = "ragged" if name == "llava" else "sizes"
    parts, inputs = locate(ready(name)), prompt(name, shape).inputs
    one, two = Reader(keep=0.6, layer=1), Reader(keep=0.2, layer=2)
    _, found = record(parts, inputs, pruners=[one, two])
    layer0 = [EncoderAttention(layer=0), EncoderKeys(layer=0), EncoderFeatures(layer=0)]
    _, plain = record(parts, inputs, signals=layer0)
    for i, n in enumerate(found.lengths):
        content = (~found.layouts()[i].newline).nonzero()[:, 0]
        assert torch.equal(one.seen["ids"][i, : len(content)], content)
        for signal in layer0:
            have, want = one.seen[type(signal).__name__][i], plain.signals[signal][i]
            want = want[:, content] if isinstance(signal, EncoderAttention) else want[content]
            have = have[:, : len(content)] if isinstance(signal, EncoderAttention) else have[: len(content)]
            assert torch.equal(have, want)
        kept = found.steps[0].kept[i]
        assert torch.equal(two.seen["ids"][i, : len(kept)], kept)
        assert torch.allclose(two.seen["EncoderFeatures"][i].mean(1), two.seen["features"][i], atol=1e-5)
        assert torch.equal(two.seen["EncoderKeys"][i, : len(kept)], plain.signals[EncoderKeys(layer=0)][i][kept])
        assert n > len(kept) > len(found.steps[1].kept[i])


def test_refusals_name_what_to_do_instead() -> None:
    llava, siglip = locate(ready("llava")), locate(ready("llava_siglip"))
    with pytest.raises(NotImplementedError, match=r"no class token.*received"):
        VisionSide(siglip, signals=[EncoderAttention(queries="cls")])
    with pytest.raises(ValueError, match="queries must be one of auto, cls, received"):
        VisionSide(llava, signals=[EncoderAttention(queries="last")])
    with pytest.raises(ValueError, match=r"layers 0 to 3"):
        VisionSide(llava, signals=[EncoderKeys(layer=4)])
    unknown = locate(ready("llava"))
    unknown.family = type(unknown.family).unknown("mine")
    with pytest.raises(NotImplementedError, match="does not know how the patches of mine become tokens"):
        VisionSide(unknown, signals=[EncoderKeys()])

    class Text(Norm):
        signals = (DecoderHidden(),)

    class Later(Norm):
        signals = (EncoderKeys(layer=1),)

    class Projector(Norm):
        signals = (PreProjector(),)

    for cls, error, text in (
        (Text, NotImplementedError, "not there yet"),
        (Projector, NotImplementedError, "not there yet"),
        (Later, ValueError, "comes later"),
    ):
        with pytest.raises(error, match=text):
            VisionSide(llava, [(cls(keep=3), Stop("vision", 1, 3))])


def test_undeclared_signals_and_text_are_refused_at_the_read() -> None:
    class Sly(Norm):
        def score(self, tokens: VisualTokens) -> Tensor:
            return tokens.read(EncoderKeys()).norm(dim=-1)

    class Texting(Norm):
        def score(self, tokens: VisualTokens) -> Tensor:
            return tokens.text_valid()

    parts, inputs = locate(ready("llava")), prompt("llava", "one").inputs
    with pytest.raises(ValueError, match="not declared"):
        record(parts, inputs, pruners=[Sly(keep=3)])
    with pytest.raises(NotImplementedError, match="text is not there yet"):
        record(parts, inputs, pruners=[Texting(keep=3)])
