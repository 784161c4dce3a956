"""IDPruner: where its importance comes from."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from greedy_tools import slow_farthest, spans_of
from properties import Spans, check_selection, peak_bytes
from safetensors.torch import save_file
from torch import nn

import vtc
from vtc.pruners.idpruner import SCORER_KEYS
from vtc.pruners.signals import EncoderAttention

pytestmark = pytest.mark.usefixtures("no_grad")


def scorer_file(folder, d, h=4, prefix="", extra=None):
    torch.manual_seed(1)
    q, k = nn.Linear(d, h), nn.Linear(d, h)
    weights = {"q_proj.weight": q.weight, "q_proj.bias": q.bias, "k_proj.weight": k.weight, "k_proj.bias": k.bias}
    weights = {prefix + name: w.detach().clone() for name, w in weights.items()}
    save_file({**weights, **(extra or {})}, folder / "a.safetensors")
    return q, k


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "visual.importance_scorer."])
def test_the_trained_scorer_is_the_mean_of_its_logits(tmp_path, prefix):
    other = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}
    q, k = scorer_file(tmp_path, 6, prefix=prefix, extra=other)
    for path in (tmp_path, tmp_path / "a.safetensors"):
        pruner = vtc.parse("idpruner", importance="scorer", scorer=str(path))[0]
        spans = spans_of((), [11, 5])
        found = pruner.weigh(spans.tokens())
        for row, x in enumerate(spans.features):
            assert torch.allclose(found[row, : len(x)], (q(x) @ k(x).T / 2).mean(1), atol=1e-6)
        check_selection(pruner, spans)


def scored(path, spans):
    return vtc.parse("idpruner", importance="scorer", scorer=str(path))[0].weigh(spans.tokens())


def test_scorers_that_are_none_are_named(tmp_path):
    spans = spans_of((), [4])
    with pytest.raises(FileNotFoundError, match="fetch the scorer first"):
        scored(tmp_path / "none", spans)
    with pytest.raises(ValueError, match=r"holds no VisionSelector scorer .* it has \[\]"):
        scored(tmp_path, spans)
    save_file({"k_proj.weight": torch.zeros(2, 2)}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"it has \['k_proj.weight'\]"):
        scored(tmp_path / "part.safetensors", spans)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.safetensors' is no safetensors file"):
        scored(tmp_path / "text.safetensors", spans)


@pytest.mark.parametrize(
    "shapes",
    [([4, 6], [5], [4, 6], [4]), ([4, 6], [4], [5, 6], [5]), ([4, 6], [4], [4, 7], [4]), ([6], [4], [6], [4])],
    ids=["bias", "hidden", "width", "vector"],
)
def test_scorers_of_wrong_shapes_are_named(tmp_path, shapes):
    save_file({k: torch.zeros(s) for k, s in zip(SCORER_KEYS, shapes, strict=True)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"expected \[h, D\], \[h\], \[h, D\], \[h\]"):
        scored(tmp_path, spans_of((), [4]))


def test_a_scorer_of_another_model_is_named(tmp_path):
    scorer_file(tmp_path, 8)
    with pytest.raises(ValueError, match="features of width 8, this model's have 6"):
        scored(tmp_path, spans_of((), [4]))


def test_a_token_that_is_not_finite_leaves_the_others_their_scores(tmp_path):
    scorer_file(tmp_path, 6)
    spans = spans_of((), [9])
    for bad in (float("nan"), float("inf")):
        whole = dataclasses.replace(spans, features=[torch.cat([spans.features[0], torch.full((1, 6), bad)])])
        found = scored(tmp_path, whole)[0]
        assert torch.allclose(found[:9], scored(tmp_path, spans)[0], atol=1e-6)
        assert found[9].isnan()


def test_the_scorer_holds_at_most_four_times_the_features(tmp_path):
    scorer_file(tmp_path, 4096, 2048)
    pruner = vtc.parse("idpruner", importance="scorer", scorer=str(tmp_path))[0]
    pruner.weigh(Spans([torch.zeros(2, 4096)], [1]).tokens())  # read before: the weights are not the features' matter
    for dtype in (torch.float32, torch.bfloat16):
        make = lambda: Spans([torch.empty(2880, 4096, dtype=dtype)], [144]).tokens()  # noqa: B023, E731
        held = peak_bytes(make, lambda tokens: pruner.select(tokens, 144))
        assert 0 < held <= 4 * 2880 * 4096 * dtype.itemsize


def test_idpruner_at_the_ends_of_lam():
    spans = spans_of((EncoderAttention(),), [15], keep=6)
    w = spans.reads[EncoderAttention()][0].mean(0)
    [by_importance] = check_selection(vtc.parse("idpruner(lam=1.0)")[0], spans)
    assert by_importance == w.argsort(descending=True)[:6].tolist()
    [by_diversity] = check_selection(vtc.parse("idpruner(lam=0.0)")[0], spans)
    assert by_diversity == slow_farthest(spans.features[0].double().numpy(), 6, start=w.numpy())
