"""QueCC: its network by torch's own modules, windows, counts, the question's part in it, and what its pass costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from asking import BUNDLED, ask
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText
from zoo import prompt, tiny

import vtc
from vtc.models.facts_of_model import facts_of
from vtc.models.layout.model_parts import locate
from vtc.pruners import make_pruner
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.quecc import QueryCompressor
from vtc.pruners.trained.windows import tokens_of, windows

pytestmark = pytest.mark.usefixtures("no_grad")
FREE = {"weights": "untrained", "question": "ids"}


def bundled() -> Any:
    return AutoModelForImageTextToText.from_pretrained(BUNDLED, dtype=torch.float32).eval()


def by_torch(net: QueryCompressor, x: Tensor, multi: Tensor, t: Tensor, side: int) -> Tensor:
    """The network on a square map `[side, side, D]`, by torch's convolution and attention."""
    s = net.down.kernel_size[0]
    x = x + net.text_norm(net.text(t))
    queries = net.down(net.query(x).permute(2, 0, 1)[None])[0].flatten(1).T
    found = []
    for i in range((side // s) ** 2):
        row, col = i // (side // s) * s, i % (side // s) * s
        window = multi[row : row + s, col : col + s].flatten(0, 1)[None]
        found.append(net.attention(queries[i][None, None], net.key(window), net.value(window))[0][0, 0])
    return torch.stack(found)


@pytest.mark.parametrize(("side", "kernel"), [(6, 3), (6, 6), (4, 1), (4, 2)])
def test_the_network_is_torch_s_convolution_and_attention(side: int, kernel: int) -> None:
    torch.manual_seed(0)
    net = QueryCompressor(16, 10, 24, kernel, 4)
    nn.init.normal_(net.attention.in_proj_bias)
    x, multi, t = torch.randn(side, side, 16), torch.randn(side, side, 24), torch.randn(10)
    patches = torch.from_numpy(windows(Layout((Grid(side, side),)), kernel)[0])
    given = x.flatten(0, 1)[patches], multi.flatten(0, 1)[patches], t.expand(len(patches), -1)
    found = net(*given, there=torch.ones_like(patches, dtype=torch.bool))
    assert torch.allclose(found, by_torch(net, x, multi, t, side), atol=1e-5)


def test_patches_that_are_not_there_play_no_part() -> None:
    torch.manual_seed(0)
    net, there = QueryCompressor(8, 4, 8, 2, 2), torch.tensor([[True, True, False, False]])
    x, multi = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    other = x.clone(), multi.clone()
    for y in other:
        y[:, 2:] = 7.0
    assert torch.allclose(net(x, multi, there=there), net(*other, there=there), atol=1e-6)


@pytest.mark.parametrize(
    ("grids", "kernel"), [(((4, 4),), 2), (((5, 7),), 3), (((4, 4), (2, 3)), 2), (((1, 9),), 4), (((3, 3),), 5)]
)
def test_windows_cover_every_patch_once_and_their_middles_are_theirs(grids: Any, kernel: int) -> None:
    layout = Layout(tuple(Grid(*g) for g in grids))
    found, centres = windows(layout, kernel)
    assert found.shape == (tokens_of(layout, kernel), kernel**2)
    assert sorted(found[found >= 0].tolist()) == list(range(layout.content))
    assert all(centre in window for centre, window in zip(centres, found, strict=True))
    if grids == ((4, 4),):
        assert found.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize("keep", [1, 4, 0.25, 0.06])
def test_counts_that_windows_can_make_are_kept_exactly(keep: int | float) -> None:
    model, given = tiny("llava"), prompt("llava", "one").inputs
    with vtc.compressed(model, "quecc", keep=keep, **FREE):
        model(**given)
        assert {len(k) for k in model.vtc.report.steps[0].kept} == {round(keep * 16) if keep < 1 else keep}


def test_other_counts_are_refused_with_what_there_is(tmp_path: Path) -> None:
    model, given = tiny("llava"), prompt("llava", "one").inputs
    vtc.compress(model, "quecc", keep=6, **FREE)
    with pytest.raises(ValueError, match=r"can't make 6 tokens of 4x4 patches; the nearest is 4, all: 1, 4, 16"):
        model(**given)
    vtc.restore(model)
    pruner = make_pruner("quecc", keep=4, **FREE)
    with vtc.compressed(model, pruner):
        model(**given)
    pruner.save(tmp_path / "a.safetensors", {"model": "mine"}, facts_of(locate(model)))
    own = {"weights": str(tmp_path / "a.safetensors"), "question": "ids"}
    with vtc.compressed(model, "quecc", keep=4, **own):
        model(**given)
    vtc.compress(model, "quecc", keep=1, **own)
    with pytest.raises(ValueError, match=r"makes 4 tokens of 4x4 patches \(windows of 2x2\), not 1: ask for keep=4"):
        model(**given)
    vtc.restore(model)
    with vtc.compressed(model, "quecc", keep=1, exact=False, **own):
        model(**given)
        assert model.vtc.report.tokens_kept % 4 == 0
    for wrong in ({"kernel": 2}, {"kernel": 0, **FREE}, {"question": "sound"}):
        with pytest.raises(ValueError, match=r"quecc\.(kernel|question)="):
            make_pruner("quecc", keep=4, **wrong)


def logits(model: Any, question: str, **params: Any) -> Tensor:
    with vtc.compressed(model, "quecc", keep=16, weights="untrained", **params):
        found = model(**ask(question))
        assert model.vtc.report.tokens_kept == 16
        return found.logits[0, -1]


def test_tokens_depend_on_the_question_unless_it_is_left_out() -> None:
    model, seen = bundled(), []
    handle = model.model.language_model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    def tokens(question: str, **params: Any) -> Tensor:
        seen.clear()
        logits(model, question, **params)
        return seen[-1][0, 1:18]  # the pass over the question came before

    one, other = "what color is a?", "what color is b?"
    assert not torch.allclose(tokens(one), tokens(other), atol=1e-3)
    assert torch.equal(tokens(one), tokens(one))
    assert torch.allclose(tokens(one, no_text=True), tokens(other, no_text=True), atol=1e-6)
    assert not torch.allclose(tokens(one), tokens(one, no_text=True), atol=1e-3)
    handle.remove()


def test_gradients_reach_the_network_and_not_the_question() -> None:
    model, inputs = bundled().requires_grad_(False), ask("what color is a?")
    pruner = make_pruner("quecc", keep=1, weights="untrained")
    with vtc.compressed(model, pruner):
        model(**inputs)
    net = pruner._network
    pruner.use(net.requires_grad_(True), pruner.sizes)
    with torch.enable_grad(), vtc.compressed(model, pruner):
        model(**inputs).logits[0, -1].logsumexp(0).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in net.named_parameters() if "down" in name)
    assert net.text.weight.grad is not None


def test_it_leaves_the_stock_model() -> None:
    model, given = tiny("llava"), prompt("llava", "one").inputs
    plain = model(**given).logits
    with vtc.compressed(model, "quecc", keep=4, **FREE):
        assert not torch.equal(model(**given).logits, plain)
    assert torch.equal(model(**given).logits, plain)
