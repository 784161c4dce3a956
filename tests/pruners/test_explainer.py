"""The explainer method: what its network sees and gives, its files, and its place before the first layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from methods import tiny_explainer
from safetensors.torch import save_file
from torch import Tensor
from zoo import FAMILIES, prompt, tiny

import vtc
from vtc.eval.inspect.relevance import explain
from vtc.pruners.explainer import (
    CHANNELS,
    SHIPPED,
    RelevanceNetwork,
    load_network,
    mean_attention,
    relative,
    save_network,
)

no_grad = pytest.mark.usefixtures("no_grad")


def network(seed: int = 0, channels: tuple[int, ...] = (4, 8), kernel: int = 3) -> RelevanceNetwork:
    torch.manual_seed(seed)
    return RelevanceNetwork(channels, kernel).eval()


def by_loops(net: RelevanceNetwork, attention: Tensor) -> Tensor:
    """The network on one row `[n]`, written out."""
    x = (attention / attention.mean()).log()[None]
    for depthwise, pointwise in zip(net.depthwise, net.pointwise, strict=True):
        half, rows = net.kernel // 2, []
        for c in range(len(x)):
            row = []
            for i in range(x.shape[1]):
                near = [(j, i + j - half) for j in range(net.kernel) if 0 <= i + j - half < x.shape[1]]
                row.append(depthwise.bias[c] + sum(depthwise.weight[c, 0, j] * x[c, at] for j, at in near))
            rows.append(torch.stack(row))
        x = (pointwise.weight[:, :, 0] @ torch.stack(rows) + pointwise.bias[:, None]).relu()
    return (net.head.weight[0, :, 0] @ x) + net.head.bias


@no_grad
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_it_is_five_separable_convolutions_written_out(kernel: int, n: int) -> None:
    net, attention = network(kernel=kernel), torch.rand(n) + 0.1
    assert torch.allclose(net(attention[None])[0], by_loops(net, attention), atol=1e-5)


@no_grad
def test_relevance_sums_to_one_at_any_length() -> None:
    net = RelevanceNetwork()
    assert [len(net.depthwise), *net.channels, net.kernel] == [5, *CHANNELS, 3] == [5, 32, 64, 128, 256, 512, 3]
    for n in (1, 7, 600):
        found = net(torch.rand(2, n)).softmax(-1)
        assert torch.allclose(found.sum(-1), torch.ones(2))


@no_grad
def test_padding_is_seen_by_no_token() -> None:
    net, rows = network(channels=(8, 8, 8)), [torch.rand(n) for n in (9, 4, 1)]
    padded = torch.stack([torch.nn.functional.pad(r, (0, 9 - len(r)), value=float("nan")) for r in rows])
    valid = torch.arange(9) < torch.tensor([[9], [4], [1]])
    found = net(padded, valid)
    for line, row in zip(found, rows, strict=True):
        assert torch.allclose(line[: len(row)], net(row[None])[0], atol=1e-6)
        assert (line[len(row) :] == float("-inf")).all()


@no_grad
def test_the_scale_of_the_attention_plays_no_part() -> None:
    a = torch.rand(1, 8)
    assert torch.allclose(relative(a), relative(1e-3 * a), atol=1e-5)
    assert torch.allclose(relative(a).exp().mean(), torch.ones(()))
    assert torch.allclose(relative(torch.zeros(1, 8)).exp(), torch.full((1, 8), 1e-3))
    found = relative(torch.tensor([[1.0, float("nan"), 3.0, 9.0]]), torch.tensor([[True, True, True, False]]))
    assert torch.allclose(found.exp(), torch.tensor([[0.75, 1e-3, 2.25, 1.0]]))


@no_grad
def test_rows_of_the_text_are_averaged_in_any_order() -> None:
    g = torch.Generator().manual_seed(0)
    rows, behind = torch.rand(2, 3, 5, 7, generator=g), torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    rows[0, :, 0] = float("nan")
    found = mean_attention(rows, behind)
    assert torch.allclose(found[0], rows[0, :, 2:].mean((0, 1)))
    assert (found[1] == 0).all()
    order = torch.tensor([4, 2, 0, 3, 1])
    assert torch.allclose(mean_attention(rows[:, :, order], behind[:, order]), found)


@no_grad
def test_a_saved_network_is_the_same_in_half_precision(tmp_path: Path) -> None:
    net, x = network(), torch.rand(1, 6)
    for p in net.parameters():
        p.data = p.data.half().float()
    save_network(tmp_path / "a.safetensors", net, {"model": "mine"})
    again, about = load_network(tmp_path / "a.safetensors")
    assert torch.equal(again(x), net(x))
    assert about == {"model": "mine", "channels": "4,8", "kernel": "3", "format": "vtc-explainer-1"}
    assert not any(p.requires_grad for p in again.parameters())


def test_files_that_are_no_network_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no file here; train one: vtc train explainer"):
        load_network(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.safetensors' is no safetensors file"):
        load_network(tmp_path / "text.safetensors")
    save_file({"q_proj.weight": torch.zeros(2, 2)}, tmp_path / "scorer.safetensors")
    with pytest.raises(ValueError, match="holds no explainer's network"):
        load_network(tmp_path / "scorer.safetensors")
    about = {"format": "vtc-explainer-1", "channels": "4,16", "kernel": "3"}
    save_file(network().state_dict(), tmp_path / "other.safetensors", metadata=about)
    with pytest.raises(ValueError, match="don't fit its metadata"):
        load_network(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="no file here"):  # before there is a model
        vtc.parse("explainer(keep=2, weights='none.safetensors')")
    with pytest.raises(TypeError, match=r"explainer\.weights=3 .* a string or None"):
        vtc.parse("explainer(keep=2, weights=3)")


@no_grad
@pytest.mark.parametrize("weights", [None, "own"])
def test_a_network_of_another_model_is_refused_and_the_model_goes_on(tmp_path: Path, weights: str | None) -> None:
    params, inputs = {}, prompt("llava", "one").inputs
    if weights:
        params["weights"] = str(tmp_path / "own.safetensors")
        save_network(params["weights"], network(), {"model": "big", "heads": "4", "width": "4096"})
    model = tiny("llava")
    plain = model(**inputs).logits
    vtc.compress(model, "explainer", keep=3, **params)
    with pytest.raises(ValueError, match=r"(size 4096|bundled .*6 heads, hidden size 192).*has 4 and 64"):
        model(**inputs)
    assert torch.equal(vtc.restore(model)(**inputs).logits, plain)


def test_the_shipped_network_says_what_it_is() -> None:
    net, about = load_network(SHIPPED)
    assert net.channels == CHANNELS
    assert (about["model"], about["heads"], about["width"]) == ("bundled", "6", "192")
    assert SHIPPED.stat().st_size < 500_000


@pytest.mark.parametrize("family", FAMILIES)
def test_it_keeps_what_the_network_says_of_the_first_layers_attention(family: str) -> None:
    """By the oracle's reading of the attention: another way to the same numbers."""
    path, inputs = tiny_explainer(), prompt(family, "one").inputs
    net, _ = load_network(path)
    found = explain(tiny(family), inputs, torch.tensor([7]), backward=False)
    with torch.no_grad(), vtc.compressed(tiny(family), "explainer", keep=0.4, weights=path) as model:
        out = model(**inputs, use_cache=True)
        report = model.vtc.report
    assert [(s.stage, s.layer) for s in report.steps] == [("decoder", 0)]
    for attention, layout, kept in zip(found.attention, found.layouts, report.steps[0].kept, strict=True):
        content = (~layout.newline).nonzero()[:, 0]
        order = net(attention[content][None])[0].sort(descending=True, stable=True).indices
        assert kept.tolist() == content[order[: len(kept)]].sort().values.tolist()
    gone = sum(layout.tokens for layout in found.layouts) - sum(map(len, report.steps[0].kept))
    assert gone > 0
    # what goes never enters the language model (a sliding layer holds its window only)
    assert max(layer.keys.shape[2] for layer in out.past_key_values.layers) <= inputs["input_ids"].shape[1] - gone
