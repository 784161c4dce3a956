"""What the first methods choose, against their formulas written out on states that the plain model computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch.nn.functional import cosine_similarity
from zoo import prompt, tiny

import vtc
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.visual_tokens import VisualTokens

pytestmark = pytest.mark.usefixtures("no_grad")


def kept_by(family: str, spec: str, shape: str = "ragged"):
    model = tiny(family)
    with vtc.compressed(model, spec):
        model(**prompt(family, shape).inputs, use_cache=False)
        return model.vtc.report


def states(family: str, shape: str, layer: int):
    """Input of `layer`, attention and post-rotary keys of the layer before it, of the untouched eager model."""
    import transformers.models.llama.modeling_llama as llama

    model, seen = tiny(family, "eager"), {}
    hooks = [
        model.model.language_model.layers[layer].register_forward_pre_hook(lambda m, a: seen.update(hidden=a[0])),
    ]
    rotate, calls = llama.apply_rotary_pos_emb, []

    def spy(q, k, *args, **kwargs):
        out = rotate(q, k, *args, **kwargs)
        calls.append(out[1])
        return out

    llama.apply_rotary_pos_emb = spy
    try:
        out = model(**prompt(family, shape).inputs, use_cache=False, output_attentions=True)
    finally:
        llama.apply_rotary_pos_emb = rotate
        for h in hooks:
            h.remove()
    return model, seen["hidden"], out.attentions[layer - 1], calls[layer - 1]


def test_fastv_keeps_what_the_last_token_attends_to():
    report = kept_by("llava", "fastv(layer=2, keep=5)")
    _, _, attention, _ = states("llava", "ragged", 2)
    for span, kept in zip(report.spans, report.steps[0].kept, strict=True):
        score = attention[span.sample, :, -1, span.columns].mean(0)
        assert kept.tolist() == sorted(score.topk(5).indices.tolist())


@pytest.mark.parametrize("keep", [3, 4, 7, 12])
def test_dart_follows_its_formula(keep):
    report = kept_by("llava", f"dart(layer=2, keep={keep})")
    model, hidden, _, keys = states("llava", "ragged", 2)
    valid = prompt("llava", "ragged").inputs["attention_mask"].bool()
    hidden = model.model.language_model.norm(hidden)
    norms = keys.abs().sum((1, 3))
    visual = torch.zeros_like(valid)
    for span in report.spans:
        visual[span.sample, span.columns] = True
    for span, kept in zip(report.spans, report.steps[0].kept, strict=True):
        b, columns = span.sample, span.columns.tolist()
        image = sorted(columns, key=lambda c: -norms[b, c].item())[: min(4, keep)]
        text = [c for c in range(max(columns) + 1, valid.shape[1]) if valid[b, c] and not visual[b, c]]
        pivots = image + sorted(text, key=lambda c: -norms[b, c].item())[:4]
        assert len(pivots) == len(image) + 4
        chosen, rest = list(image), keep - len(image)
        for i, pivot in enumerate(pivots):
            left = [c for c in columns if c not in chosen]
            left.sort(key=lambda c: cosine_similarity(hidden[b, pivot], hidden[b, c], dim=0).item())
            chosen += left[: rest // len(pivots) + (i < rest % len(pivots))]
        assert [columns[j] for j in kept] == sorted(chosen)


def test_random_depends_on_seed_layer_and_nothing_of_the_batch():
    one = kept_by("llava", "random(keep=5, seed=3)", "one").steps[0].kept
    ragged = kept_by("llava", "random(keep=5, seed=3)")
    assert one[0].tolist() == ragged.steps[0].kept[0].tolist()
    by_sample = {}
    for span, kept in zip(ragged.spans, ragged.steps[0].kept, strict=True):
        by_sample.setdefault(span.sample, []).append(kept.tolist())
    assert by_sample[1][0] != by_sample[1][1]  # two images of one sample differ
    assert by_sample[0][0] == by_sample[2][0]
    assert kept_by("llava", "random(keep=5, seed=4)").steps[0].kept[0].tolist() != one[0].tolist()
    assert kept_by("llava", "random(keep=5, seed=3, layer=1)").steps[0].kept[0].tolist() != one[0].tolist()


def test_random_is_uniform():
    counts = torch.zeros(16)
    method = vtc.parse("random(keep=4)")[0]
    for seed in range(400):
        method.seed = seed
        counts[method.select(bare(torch.zeros(1, 16, 2), [4]), 4)[0]] += 1
    expected = 400 * 4 / 16
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 37.7  # 0.999 quantile of chi-squared with 15 degrees of freedom


def bare(features: torch.Tensor, budgets: list[int], counts: list[int] | None = None) -> VisualTokens:
    rows, width = features.shape[:2]
    counts = counts or [width] * rows
    ids = torch.arange(width).expand(rows, -1)
    ids = torch.where(ids < torch.tensor(counts)[:, None], ids, -1)
    layouts = [Layout((Grid(4, n // 4),)) for n in counts]
    return VisualTokens(features, ids, counts, budgets, layouts, torch.arange(rows), [0] * rows)


def test_pool_is_average_pooling():
    features = torch.randn(2, 16, 3)
    found = vtc.parse("pool(keep=4)")[0].select(bare(features, [4, 4]), 4)
    blocks = features.view(2, 2, 2, 2, 2, 3).mean((2, 4)).view(2, 4, 3)
    assert torch.allclose(found.features, blocks, atol=1e-6)
    assert found.index.tolist() == [[0, 2, 8, 10]] * 2


def test_ragged_rows_equal_rows_by_themselves():
    features = torch.randn(2, 24, 3)
    for name in ("uniform", "pool", "random"):
        method = vtc.parse(name, keep=0.5)[0]
        both = method.select(bare(features, [8, 12], [16, 24]), 12)
        alone = method.select(bare(features[:1, :16], [8], [16]), 8)
        index = both.index if name == "pool" else both
        other = alone.index if name == "pool" else alone
        assert index[0, :8].tolist() == other[0].tolist(), name
        if name == "pool":
            assert torch.allclose(both.features[0, :8], alone.features[0])


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("random(seed=1.5, keep=2)", "seed"),
        ("random(at=nowhere, keep=2)", "at='nowhere'"),
        ("random(at=input, layer=2, keep=2)", "does not go with"),
        ("random(at=vision, keep=2)", "does not go with"),
        ("dart(pivots=0, keep=2)", "pivots=0"),
    ],
)
def test_bad_parameters_are_named(spec, match):
    with pytest.raises((ValueError, TypeError), match=match):
        vtc.parse(spec)


@dataclass(kw_only=True)
class Broken(vtc.Pruner):
    """Returns what it should not."""

    what: str = "float"
    ragged: ClassVar[bool] = True

    def select(self, tokens, k):
        rows = len(tokens.counts)
        return (
            {
                "float": torch.zeros(rows, k),
                "short": torch.zeros(rows, k - 1, dtype=torch.long),
                "signal": None,
            }[self.what]
            if self.what != "signal"
            else tokens.read(vtc.pruner_class("fastv").signals[0])
        )


@pytest.mark.parametrize(
    ("what", "match"), [("float", "int64"), ("short", r"must return \["), ("signal", "was not declared")]
)
def test_a_broken_method_is_named_and_leaves_the_model_usable(what, match):
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    before = model(**inputs).logits
    with vtc.compressed(model, Broken(keep=3, what=what)), pytest.raises((TypeError, ValueError), match=match):
        model(**inputs)
    assert torch.equal(model(**inputs).logits, before)
