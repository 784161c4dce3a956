"""TokenFLEX: its pooling, its network written out, and the file of a trained network with all that is refused of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import BUNDLED, ask
from golden_support import Served, tokens_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText
from zoo import prompt, tiny

import vtc
from vtc.models.facts_of_model import facts_of
from vtc.models.layout.model_parts import locate
from vtc.pruners import make_pruner
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import PreProjector
from vtc.pruners.tokenflex import FlexProjector, TokenFLEX, pooling, windows

pytestmark = pytest.mark.usefixtures("no_grad")
MODEL = "train one: vtc train tokenflex --model"


def bundled(dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForImageTextToText.from_pretrained(BUNDLED, dtype=dtype).eval()


def shaken(network: torch.nn.Module, seed: int = 0) -> None:
    """Give all weights values, those that begin at zero too."""
    g = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.data.copy_(torch.randn(p.shape, generator=g) / math.sqrt(p.shape[-1]))


def made_for(model: Any, path: Path, inputs: Any) -> Path:
    """The file of a network with values, made on `model`."""
    pruner = make_pruner("tokenflex", keep=4, weights="untrained")
    with vtc.compressed(model, pruner):
        model(**inputs)
    shaken(pruner._network)  # type: ignore[arg-type]
    pruner.save(path, {"model": "mine", "seed": "0"}, facts_of(locate(model)))
    return path


@pytest.mark.parametrize(
    ("rows", "cols", "k"),
    [(24, 24, 64), (24, 24, 1), (24, 24, 576), (27, 27, 64), (27, 27, 256), (8, 12, 24), (6, 9, 6), (5, 10, 8)],
)
def test_pooling_is_torch_s_adaptive_average(rows: int, cols: int, k: int) -> None:
    across = math.isqrt(k * cols // rows)
    x = torch.randn(3, rows, cols, dtype=torch.float64)
    expected = torch.nn.AdaptiveAvgPool2d((k // across, across))(x).flatten(1)
    weights, centres = pooling(Layout((Grid(rows, cols),)), rows * cols, k)
    assert torch.allclose(x.flatten(1) @ torch.from_numpy(weights).T, expected)
    assert len(set(centres.tolist())) == k


@pytest.mark.parametrize(("rows", "cols", "k"), [(24, 24, 65), (6, 9, 8), (4, 4, 17), (3, 7, 2)])
def test_counts_that_are_not_of_the_grid_s_shape_take_cells(rows: int, cols: int, k: int) -> None:
    assert windows(Grid(rows, cols), k) is None
    if k < rows * cols:
        weights, _ = pooling(Layout((Grid(rows, cols),)), rows * cols, k)
        assert weights.shape == (k, rows * cols)
        assert torch.allclose(torch.from_numpy(weights.sum(1)), torch.ones(k, dtype=torch.float64))
        assert ((weights > 0).sum(0) == 1).all(), "each patch in one cell"


def test_the_formula_written_out() -> None:
    """tokens = P stock(x) + W_o(SiLU(W_g LN(P x)) * W_u LN(P x)), patches of a token side by side."""
    g = torch.Generator().manual_seed(0)
    features, patches = torch.randn(1, 36, 10, generator=g), torch.randn(1, 36, 2, 6, generator=g)
    pruner = make_pruner("tokenflex", keep=9, weights="untrained")
    given = tokens_of(features, 9, Served({PreProjector(): patches}), [Layout((Grid(6, 6),))])
    assert torch.allclose(pruner.select(given, 9).features[0], _pooled(features[0]), atol=1e-6), "as the stock model"
    net = pruner._network
    shaken(net)
    pruner._copies.clear()
    x = _pooled(patches[0].flatten(1))
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + net.norm.eps).sqrt()
    x = x * net.norm.weight + net.norm.bias
    gate, up = x @ net.gate.weight.T, x @ net.up.weight.T
    expected = _pooled(features[0]) + (gate * gate.sigmoid() * up) @ net.out.weight.T
    assert torch.allclose(pruner.select(given, 9).features[0], expected, atol=1e-5)
    assert net.gate.bias is net.up.bias is net.out.bias is None
    assert pruner.sizes == {"source": 12, "width": 10, "hidden": 10}


def _pooled(x: Tensor) -> Tensor:
    """Means of 2 x 2 windows of a 6 x 6 grid."""
    return x.view(3, 2, 3, 2, -1).mean((1, 3)).reshape(9, -1)


def test_an_untrained_network_is_always_the_same_and_changes_nothing() -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    plain = model(**inputs).logits
    torch.manual_seed(1)
    with vtc.compressed(model, "tokenflex", keep=4, weights="untrained"):
        first, drawn = model(**inputs).logits, torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1)), "the user's random numbers are not touched"
    with vtc.compressed(model, "tokenflex", keep=4, weights="untrained"):
        assert torch.equal(model(**inputs).logits, first)
    assert not torch.equal(first, plain)
    assert torch.equal(model(**inputs).logits, plain)


def test_a_file_gives_the_same_network_and_holds_nothing_pickled(tmp_path: Path) -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    path = made_for(model, tmp_path / "a.safetensors", inputs)
    with safe_open(path, framework="pt") as stored:
        about = stored.metadata()
    assert about["format"] == "vtc-tokenflex-1"
    assert (about["model"], about["seed"]) == ("mine", "0")
    assert json.loads(about["sizes"]) == {"source": 48, "width": 64, "hidden": 64}
    assert json.loads(about["fits"])["width"] == 64
    weights = load_file(path)
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    plain = model(**inputs).logits
    with vtc.compressed(model, "tokenflex", keep=4, weights=str(path)) as wrapped:
        found = model(**inputs).logits
        assert wrapped.vtc.report.tokens_kept == 4
    net = FlexProjector(48, 64, 64)
    net.load_state_dict({name: w.float() for name, w in weights.items()})
    own = TokenFLEX(keep=4, weights="untrained")
    own.use(net, {})
    with vtc.compressed(model, own):
        assert torch.allclose(model(**inputs).logits, found, atol=1e-6)
    (tmp_path / "folder").mkdir()
    path.rename(tmp_path / "folder" / "compressor.safetensors")
    with vtc.compressed(model, "tokenflex", keep=4, weights=str(tmp_path / "folder")):
        assert torch.equal(model(**inputs).logits, found)
    assert torch.equal(model(**inputs).logits, plain), "the stock model again"


def test_what_is_no_file_of_it_is_refused_in_words(tmp_path: Path) -> None:
    def refused(path: Path, error: type[Exception], *words: str) -> None:
        with pytest.raises(error) as raised:
            vtc.compress(tiny("llava"), "tokenflex", keep=4, weights=str(path))
        for word in words:
            assert word in str(raised.value)

    def stored(name: str, **about: str) -> Path:
        save_file({"gate.weight": torch.zeros(2, 2)}, tmp_path / name, metadata=about or None)
        return tmp_path / name

    refused(tmp_path / "none", FileNotFoundError, "is no file here", MODEL)
    (tmp_path / "text").write_text("no weights")
    refused(tmp_path / "text", ValueError, "is no safetensors file")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickled")
    refused(tmp_path / "pickled", ValueError, "is no safetensors file")
    refused(stored("bare"), ValueError, "its metadata name no format", MODEL)
    refused(stored("other", format="vtc-quecc-1"), ValueError, "its format is 'vtc-quecc-1'", MODEL)
    refused(stored("nosizes", format="vtc-tokenflex-1"), ValueError, "say no sizes", MODEL)
    refused(stored("broken", format="vtc-tokenflex-1", sizes="{"), ValueError, "say no sizes", MODEL)
    refused(stored("list", format="vtc-tokenflex-1", sizes="[1]"), ValueError, "say no sizes", MODEL)
    with pytest.raises(ValueError, match=r"no trained network of tokenflex comes with vtc|was made for bundled"):
        vtc.compress(tiny("llava"), "tokenflex", keep=4)
    with pytest.raises(TypeError, match=r"tokenflex\.weights=3"):
        vtc.parse("tokenflex(keep=4, weights=3)")


def test_weights_that_do_not_fit_their_own_sizes_are_refused(tmp_path: Path) -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    path = made_for(model, tmp_path / "a.safetensors", inputs)
    with safe_open(path, framework="pt") as stored:
        about = stored.metadata()
    for sizes in ({"source": 48, "width": 64, "hidden": 32}, {"source": 48}, {"source": "x", "width": 1, "hidden": 1}):
        save_file(load_file(path), tmp_path / "b.safetensors", metadata={**about, "sizes": json.dumps(sizes)})
        vtc.compress(model, "tokenflex", keep=4, weights=str(tmp_path / "b.safetensors"))
        with pytest.raises(ValueError, match=r"(?s)don't fit the sizes that it says .*vtc train tokenflex"):
            model(**inputs)
        vtc.restore(model)


def test_a_network_of_another_model_is_refused_before_anything_is_hooked(tmp_path: Path) -> None:
    inputs = prompt("llava", "one").inputs
    path = made_for(tiny("llava"), tmp_path / "a.safetensors", inputs)
    other = bundled()
    with pytest.raises(ValueError, match=r"was made for mine \(width 64.*this model has width 192.*vtc train") as said:
        vtc.compress(other, "tokenflex", keep=4, weights=str(path))
    assert "layers 6" in str(said.value)
    model = tiny("llava")
    before = model.model.language_model.layers[0]
    weight = next(p for p in before.parameters() if p.dim() >= 2)
    kept = weight.data.clone()
    weight.data = -kept
    try:
        with pytest.raises(
            ValueError, match=r"for mine, whose first decoder layer has other values .*of the same sizes.*vtc train"
        ):
            vtc.compress(model, "tokenflex", keep=4, weights=str(path))
    finally:
        weight.data = kept
    with vtc.compressed(model, "tokenflex", keep=4, weights=str(path)):
        model(**inputs)


def test_metadata_that_say_nothing_of_a_model_refuse_none(tmp_path: Path) -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    path = made_for(model, tmp_path / "a.safetensors", inputs)
    with safe_open(path, framework="pt") as stored:
        about = stored.metadata()
    save_file(load_file(path), path, metadata={**about, "fits": "{", "sketch": "no"})
    with vtc.compressed(model, "tokenflex", keep=4, weights=str(path)):
        model(**inputs)


def test_a_file_of_a_float32_model_works_on_the_same_in_bfloat16(tmp_path: Path) -> None:
    inputs = ask("what color is a?")
    path = made_for(bundled(), tmp_path / "a.safetensors", inputs)
    model = bundled(torch.bfloat16)
    given = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    with vtc.compressed(model, "tokenflex", keep=16, weights=str(path)) as wrapped:
        logits = model(**given).logits
        assert wrapped.vtc.report.tokens_kept == 16
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()
