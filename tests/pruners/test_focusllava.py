"""FocusLLaVA: its cells, the scales it chooses against all others, its score written out, gradients, its file."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import BUNDLED
from golden_support import Served, tokens_of
from torch import Tensor
from transformers import AutoModelForImageTextToText
from zoo import prompt, tiny

import vtc
from vtc.models.facts_of_model import facts_of
from vtc.models.layout.model_parts import locate
from vtc.pruners import make_pruner
from vtc.pruners.base import Merged
from vtc.pruners.focusllava import FocusLLaVA, FocusSamplers
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import DecoderAttention, DecoderHidden
from vtc.pruners.trained.nested_cells import nested_cells, side_for

NEW = {"weights": "untrained"}
SIZES = {"width": 64, "hidden": 16, "rank": 8}


def live(width: int = 64, seed: int = 0, **params: Any) -> tuple[FocusLLaVA, FocusSamplers]:
    """The method with samplers that are being trained, no weight of which is zero."""
    network, g = FocusSamplers(width, 16, 8), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / math.sqrt(p.shape[-1]))
    pruner = FocusLLaVA(**NEW, **params)
    pruner.use(network, {**SIZES, "width": width})
    return pruner, network


@pytest.mark.parametrize(
    ("grids", "side"), [(((8, 8),), 4), (((5, 7),), 4), (((4, 4), (2, 3)), 4), (((1, 9),), 8), (((16, 12),), 8)]
)
def test_cells_lie_in_one_another_and_their_middles_too(grids: Any, side: int) -> None:
    layout = Layout(tuple(Grid(*g) for g in grids))
    cells, anchors = nested_cells(layout, side)
    for scale in range(3):
        size = side >> scale
        assert cells[scale].max() + 1 == sum(-(-g.rows // size) * -(-g.cols // size) for g in layout.grids)
        assert all(cells[scale][anchors[scale]] == cells[scale]), "a cell's middle is in it"
        if scale:
            assert len({*zip(cells[scale], cells[scale - 1], strict=True)}) == cells[scale].max() + 1
            assert {*anchors[scale - 1]} <= {*anchors[scale]}
    if side == 4:
        assert sorted(anchors[2]) == list(range(layout.content)), "the smallest cells are patches"
    if grids == ((8, 8),):
        assert anchors[0].reshape(8, 8)[::4, ::4].tolist() == [[9, 13], [41, 45]]


def test_windows_grow_until_there_are_no_more_than_asked() -> None:
    square = Layout((Grid(24, 24),))
    assert [side_for(square, k)[1] for k in (576, 36, 35, 9, 8, 4, 1)] == [4, 4, 8, 8, 16, 16, 32]
    frames = Layout((Grid(4, 4, "frame"),) * 3)
    assert side_for(frames, 3) == (frames, 4)
    assert side_for(frames, 2)[0] == Layout.line(48)


def lost(x: Tensor) -> Tensor:
    """What each 4 x 4 window of a square map `[n, n, D]` loses as 1, 4 and 16 tokens, `[W, 3]`, by loops."""
    found = []
    for row, col in itertools.product(range(0, x.shape[0], 4), range(0, x.shape[1], 4)):
        window = x[row : row + 4, col : col + 4]
        quarters = [window[i : i + 2, j : j + 2] for i in (0, 2) for j in (0, 2)]
        found.append([sum(((c - c.mean((0, 1))) ** 2).sum() for c in some) for some in ([window], quarters)] + [0.0])
    return torch.tensor(found)


@torch.no_grad()
def test_the_scales_are_those_of_the_least_loss_among_all_choices() -> None:
    """Untrained, wherever no window takes a step in part: no choice of as few tokens loses less."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(8, 8, 5, generator=g) * torch.rand(8, 8, 1, generator=g)
    loses, sizes = lost(x.double()), torch.tensor([1, 4, 16])
    choices = [*itertools.product(range(3), repeat=4)]
    every = [(int(sizes[list(c)].sum()), float(loses[range(4), list(c)].sum())) for c in choices]
    whole = 0
    for k in range(4, 64):
        found = FocusLLaVA(**NEW).select(tokens_of(x.flatten(0, 1), k, layouts=[Layout((Grid(8, 8),))]), k)
        assert len(set(found.index[0].tolist())) == k
        kept = torch.zeros(64, dtype=torch.bool)
        kept[found.index[0]] = True
        per_window = kept.view(2, 4, 2, 4).sum((1, 3)).flatten().tolist()
        if all(n in (1, 4, 16) for n in per_window):
            whole += 1
            ours = sum(float(loses[w, [1, 4, 16].index(n)]) for w, n in enumerate(per_window))
            assert ours <= min(loss for n, loss in every if n <= k) + 1e-6
    assert whole >= 5


@torch.no_grad()
def test_flat_windows_are_one_token_and_tokens_are_means_of_their_cells() -> None:
    x = torch.zeros(8, 8, 3)
    x[:4, 4:] = torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(0))  # one busy window
    x[4:, :4] = 2.0  # another that is flat
    found = FocusLLaVA(**NEW).select(tokens_of(x.flatten(0, 1), 19, layouts=[Layout((Grid(8, 8),))]), 19)
    kept = dict(zip(found.index[0].tolist(), found.features[0], strict=True))
    busy = {r * 8 + c for r in range(4) for c in range(4, 8)}
    assert busy <= set(kept)
    assert {*kept} - busy == {9, 41, 45}, "the middles of the others"
    assert torch.equal(kept[41], torch.full((3,), 2.0))
    assert all(torch.equal(kept[i], x.flatten(0, 1)[i]) for i in busy)
    half = FocusLLaVA(**NEW).select(tokens_of(x.flatten(0, 1), 6, layouts=[Layout((Grid(8, 8),))]), 6)
    one = dict(zip(half.index[0].tolist(), half.features[0], strict=True))  # two cells of four, the rest together
    assert torch.allclose(one[13] * 8 + sum(one[i] * 4 for i in one if i in busy - {13}), x[:4, 4:].sum((0, 1)))


@torch.no_grad()
def test_the_router_s_values_decide() -> None:
    pruner, network = live(5)
    for p in (*network.scales.parameters(),):
        p.zero_()
    network.scales.bias.copy_(torch.tensor([0.0, 1e6, 0.0]))  # all windows want four tokens
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(1))
    found = pruner.select(tokens_of(x, 16, layouts=[Layout((Grid(8, 8),))]), 16)
    kept = np.zeros(64, dtype=bool)
    kept[found.index[0].numpy()] = True
    assert kept.reshape(4, 2, 4, 2).sum((1, 3)).tolist() == [[1] * 4] * 4


def asked(seed: int = 0, keep: int = 4) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Tokens at the decoder stage, with attention and the states of the text."""
    g = torch.Generator().manual_seed(seed)
    x, said = torch.randn(2, 12, 6, generator=g), torch.randn(2, 5, 6, generator=g)
    attention = torch.rand(2, 3, 1, 12, generator=g).softmax(-1)
    source = Served({DecoderAttention(): attention}, {DecoderHidden(): said})
    return tokens_of(x, keep, source, stage="decoder", layer=2), x, said, attention


def test_the_score_written_out_and_the_gradient_of_its_choice() -> None:
    pruner, net = live(6)
    tokens, x, said, attention = asked()

    def norm(y: Tensor, layer: Any) -> Tensor:
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + layer.eps).sqrt()
        return y * layer.weight + layer.bias

    left, right = norm(x, net.visual_norm) @ net.visual.weight.T, norm(said[:, -1], net.question_norm)
    product = (left @ (right @ net.question.weight.T)[..., None])[..., 0] / math.sqrt(8)
    score = attention.mean(1)[:, 0].log() + product
    found = pruner.select(tokens, 4)
    assert isinstance(found, Merged)
    assert torch.equal(found.index, score.argsort(1, descending=True)[:, :4])
    picked = x[torch.arange(2)[:, None], found.index]
    assert torch.equal(found.features, picked), "what comes out is the choice itself"
    found.features[0].sum().backward()
    ours = [p.grad.clone() for p in (net.visual.weight, net.question.weight)]
    net.zero_grad()
    ranked = score[0].argsort(descending=True)
    kept, left = ranked[:4], ranked[4:]
    sure = torch.sigmoid(score[0][kept] - (score[0][kept[-1]] + score[0][left[0]]).detach() / 2)[:, None]
    soft = sure * x[0][kept] + (1 - sure) * (score[0][left].softmax(-1) @ x[0][left])
    soft.sum().backward()
    for p, grad in zip((net.visual.weight, net.question.weight), ours, strict=True):
        assert grad.abs().sum() > 0
        assert torch.allclose(grad, p.grad, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(pruner.select(tokens, 4), found.index)


@pytest.mark.parametrize("shape", ["one", "ragged"])
def test_gradients_reach_both_samplers_and_the_numbers_are_those_without(shape: str) -> None:
    model, inputs = tiny("llava").requires_grad_(False), prompt("llava", shape).inputs
    pruner, network = live(keep=3, layer=2)
    with vtc.compressed(model, pruner):
        with torch.no_grad():
            plain = model(**inputs).logits
        logits = model(**inputs).logits
        assert torch.equal(logits, plain)
        logits[:, -1].logsumexp(-1).sum().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


@torch.no_grad()
def test_each_sampler_alone_and_the_counts_of_both() -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    layers = {}
    for name, more in {"both": {}, "vision": {"text": False}, "text": {"vision": False}}.items():
        with vtc.compressed(model, "focusllava", keep=4, layer=2, **NEW, **more):
            text = model(**inputs).logits
            layers[name] = model.vtc.report.tokens_per_layer
    assert layers == {"both": [8, 8, 4, 4, 4, 4], "vision": [4] * 6, "text": [16, 16, 4, 4, 4, 4]}
    with vtc.compressed(model, "fastv", keep=4, layer=2):
        assert torch.equal(model(**inputs).logits, text), "untrained, the text chooses by attention alone"
    assert FocusLLaVA(keep=64, **NEW).stops(32)[1].layer == 8
    assert [s.keep for s in FocusLLaVA(keep=0.7, **NEW).stops(8)] == [1.0, 0.7]
    for wrong in ({"ratio": 0.5}, {"vision": False, "text": False}):
        with pytest.raises(ValueError, match="focusllava"):
            make_pruner("focusllava", keep=4, **NEW, **wrong)


@torch.no_grad()
def test_its_file_gives_the_same_samplers_and_belongs_to_a_model(tmp_path: Path) -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    pruner, network = live(keep=4, layer=2)
    for p in network.parameters():
        p.copy_(p.bfloat16())
    with vtc.compressed(model, pruner):
        expected = model(**inputs).logits
    path = tmp_path / "a.safetensors"
    pruner.save(path, {"model": "mine", "seed": "0"}, facts_of(locate(model)))
    with vtc.compressed(model, "focusllava", keep=4, layer=2, weights=str(path)):
        assert torch.equal(model(**inputs).logits, expected)
    with pytest.raises(ValueError, match=r"was made for mine \(width 64.*vtc train focusllava"):
        vtc.compress(AutoModelForImageTextToText.from_pretrained(BUNDLED), "focusllava", keep=4, weights=str(path))
    with pytest.raises(ValueError, match=r"no trained network of focusllava comes with vtc.*vtc train focusllava"):
        vtc.compress(model, "focusllava", keep=4)
