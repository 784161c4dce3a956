"""VisionZip, PruMerge, PruMerge+ and ToMe against their formulas written out, and what they promise of every choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contract_checks import batch_equals_one_by_one, pruned_equals_masked
from fake_runs import counts_of, run
from hypothesis import given, settings
from hypothesis import strategies as st
from merging_tools import DTYPES, made_up, method
from methods import LACKING, Setting
from properties import Spans, check_selection, chosen
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from zoo import prompt, tiny

import vtc
from vtc.pruners.primitives import merging
from vtc.pruners.primitives.merge_rounds import bipartite_match, merged_cosine
from vtc.pruners.primitives.merging import (
    add_weighted,
    combine,
    cosine,
    largest,
    membership,
    nearest,
    squared_distances,
)
from vtc.pruners.signals import EncoderAttention, PreProjector

pytestmark = pytest.mark.usefixtures("no_grad")
SPECS = (
    "visionzip",
    "visionzip(contextual=3)",
    "visionzip(merge=projected)",
    "prumerge",
    "prumerge_plus",
    "tome",
    "tome(metric=keys, r=2)",
    "tome(layer=3, r=0.5)",
    "tome(at=vision, layer=2)",
)
ADAPTIVE = (
    "prumerge(adaptive=True)",
    "prumerge_plus(adaptive=True)",
    "prumerge(official=True)",
    "prumerge_plus(official=True)",
)


cases = st.lists(st.tuples(st.integers(1, 24), st.floats(0.01, 1)), min_size=1, max_size=3)


@pytest.mark.parametrize("spec", SPECS)
@given(cases, st.integers(0, 9999), st.sampled_from(DTYPES), st.booleans())
@settings(max_examples=25)
def test_every_choice_is_exact_unique_and_the_same_alone(spec, cases, seed, dtype, copies):
    budgets = [max(1, int(share * n)) for n, share in cases]
    pruner = method(spec, 4)
    spans = made_up(pruner, [n for n, _ in cases], budgets, seed, dtype, copies)
    # products of rows of other shapes are rounded otherwise: ties and half precision may differ
    check_selection(pruner, spans, alone=not copies and dtype is torch.float32)


@pytest.mark.parametrize("spec", SPECS)
def test_merged_vectors_of_a_ragged_batch_are_those_of_its_spans(spec):
    pruner = method(spec, 4)
    spans = made_up(pruner, [17, 9, 24], [5, 8, 11], seed=3)
    together = pruner.select(spans.tokens(), 11)
    for i, budget in enumerate(spans.budgets):
        alone = pruner.select(spans.tokens([i]), budget)
        assert together.index[i, :budget].tolist() == alone.index[0].tolist()
        assert torch.allclose(together.features[i, :budget], alone.features[0], atol=1e-5)


@pytest.mark.parametrize("spec", ADAPTIVE)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(0, 9999), st.booleans())
@settings(max_examples=25)
def test_adaptive_counts_are_unique_and_the_same_alone(spec, sizes, seed, copies):
    pruner = method(spec, 0.25 if "official" in spec else None)
    spans = made_up(pruner, sizes, [max(1, n // 2) for n in sizes], seed, copies=copies)
    for row, n in zip(check_selection(pruner, spans, alone=not copies), sizes, strict=True):
        assert 1 <= len(row) <= n


@pytest.mark.parametrize("spec", ["visionzip", "prumerge", "tome"])
def test_a_token_that_is_no_number_spoils_only_itself(spec):
    pruner = method(spec, 8)
    spans = made_up(pruner, [20], [8], seed=6)
    for row in [r for s, values in spans.reads.items() if not isinstance(s, EncoderAttention) for r in values]:
        row[3] = float("nan")
    spans.features[0][3] = float("nan")
    found = pruner.select(spans.tokens(), 8)
    bad = ~found.features[0].isfinite().all(-1)
    assert found.index[0][bad].tolist() in ([], [3])


def test_the_merged_rest_leaves_out_what_is_no_number():
    pruner = method("prumerge", 4)
    spans = made_up(pruner, [20], [4], seed=6)
    worst = by_attention(spans)[3]  # where the rest will stand
    spans.reads[PreProjector()][0][worst] = float("nan")
    assert pruner.select(spans.tokens(), 4).index[0, 3] == worst
    assert pruner.select(spans.tokens(), 4).features.isfinite().all()


def test_prumerge_does_not_depend_on_the_order_of_tokens():
    pruner = method("prumerge", 7)
    spans = made_up(pruner, [24], [7], seed=8)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    reads = {s: [v[0][..., order] if isinstance(s, EncoderAttention) else v[0][order]] for s, v in spans.reads.items()}
    moved = Spans([spans.features[0][order]], [7], reads)
    a, b = pruner.select(spans.tokens(), 7), pruner.select(moved.tokens(), 7)
    assert order[b.index[0]].tolist() == a.index[0].tolist()
    assert torch.allclose(a.features, b.features, atol=1e-5)
    assert not method("prumerge").order_dependent


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_reach_what_is_merged(spec):
    pruner = method(spec, 6)
    spans = made_up(pruner, [20], [6], seed=2)
    source = spans.features if "merge=projected" in spec or "tome" in spec else spans.reads[pruner.signals[-1]]
    with torch.enable_grad():
        source[0].requires_grad_()
        pruner.select(spans.tokens(), 6).features.square().sum().backward()
    reached = source[0].grad.flatten(1).abs().sum(1) > 0
    assert reached.sum() > 6, "not only what is kept"


# ---------------------------------------------------------------------- primitives


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(1, 12))
def test_largest_marks_the_lowest_of_equal_ones(values, m):
    x = torch.tensor(values, dtype=torch.float32)
    x[0] = float("-inf")
    order = sorted(range(len(values)), key=lambda i: (-x[i].item(), i))[:m]
    assert largest(x[None], m)[0].nonzero()[:, 0].tolist() == sorted(i for i in order if i)


def test_nearest_is_the_lowest_of_equal_ones():
    like = torch.tensor([[[1.0, 2.0, 2.0], [3.0, 2.0, 3.0]]])
    assert nearest(like, torch.tensor([[True, True, True]]))[1].tolist() == [[1, 0]]
    assert nearest(like, torch.tensor([[False, True, True]]))[1].tolist() == [[1, 2]]


@pytest.mark.parametrize("channels", [1024, 4, 3])
def test_sums_over_some_channels_at_a_time_are_pytorchs(channels, monkeypatch):
    monkeypatch.setattr(merging, "CHANNELS", channels)
    a, b = torch.randn(2, 5, 11), torch.randn(2, 4, 11)
    assert torch.allclose(cosine(a, b), cosine_similarity(a[:, :, None], b[:, None], dim=-1), atol=1e-6)
    alone = merged_cosine(a, torch.arange(5).expand(2, -1), 5, torch.ones(2, 5))
    assert torch.allclose(alone, cosine(a[:, ::2].double(), a[:, 1::2].double()), atol=1e-11, rtol=0)
    assert torch.allclose(squared_distances(a, b), torch.cdist(a.double(), b.double()).square() / 11, atol=1e-9)
    weight, owner = torch.tensor([[2.0, 1, 1, 3, 0], [1, 1, 2, 1, 1]]), torch.tensor([[0, 1, 2, 1, 0], [2, 1, 0, 0, 1]])
    inside = membership(owner, 3, torch.ones(2, 5, dtype=torch.bool), weight)
    merged = inside @ a / inside.sum(2, keepdim=True)
    likeness = merged_cosine(a, owner, 3, weight)
    assert torch.allclose(likeness, cosine(merged[:, ::2], merged[:, 1::2]).double(), atol=1e-6)
    weights = torch.rand(2, 4, 5)
    assert torch.allclose(combine(weights, a), weights @ a, atol=1e-5)
    assert torch.allclose(add_weighted(b.clone(), b, weights[..., :1]), b + b * weights[..., :1])
    a[0, 1, 2], a[1, 2] = float("inf"), float("nan")
    assert torch.equal(combine(torch.eye(5).expand(2, -1, -1), a), a.nan_to_num(0, 0, 0))
    assert (cosine(a, b)[0, 1] == -1).all()
    assert (squared_distances(a, b)[1, 2] == 1e9).all()


@given(st.integers(2, 24), st.integers(0, 12), st.integers(0, 2), st.integers(0, 999))
@settings(max_examples=40)
def test_bipartite_matching_is_the_papers(n, r, protect, seed):
    metric = torch.randn(1, n, 4, generator=torch.Generator().manual_seed(seed))
    likeness = merged_cosine(metric, torch.arange(n)[None], n, torch.ones(1, n))
    match = bipartite_match(likeness, [r], torch.ones(1, n, dtype=torch.bool), protect)
    unit = normalize(metric[0], dim=-1)
    proposals = []
    for a in range(0, n, 2):
        to = [b for b in range(1, n, 2) if b >= protect]
        if a >= protect and to:
            best = max(to, key=lambda b: (unit[a] @ unit[b]).item())
            proposals.append((-(unit[a] @ unit[best]).item(), a, best))
    expected = {a: b for _, a, b in sorted(proposals)[: min(r, (n - protect) // 2, len(proposals))]}
    found = match.merged[0].nonzero()[:, 0].tolist()
    assert {2 * i: 2 * match.best[0, i].item() + 1 for i in found} == expected


# ---------------------------------------------------------------------- VisionZip


@pytest.mark.parametrize(("n", "keep", "contextual"), [(24, 8, 3), (24, 23, 11), (13, 4, 0), (16, 2, 5)])
def test_visionzip_follows_its_formula(n, keep, contextual):
    pruner = method(f"visionzip(contextual={contextual})", keep)
    spans = made_up(pruner, [n], [keep], seed=n)
    attention, keys, patches = (v[0].numpy() for v in spans.reads.values())
    c = min(contextual, keep - 1)
    score = attention.sum(0)
    dominant = sorted(sorted(range(n), key=lambda i: -score[i])[: keep - c])
    rest = [i for i in range(n) if i not in dominant]
    anchors = rest[:: max(1, len(rest) // max(1, c))][:c]
    metric = keys.mean(1)
    metric /= np.linalg.norm(metric, axis=1, keepdims=True)
    rows = [spans.features[0][i].numpy() for i in dominant]
    for a in anchors:
        joined = [i for i in rest if i not in anchors and max(anchors, key=lambda b: metric[i] @ metric[b]) == a]
        mean = np.mean([patches[i] for i in joined], 0) if joined else 0
        rows.append((patches[a] + mean).reshape(-1))
    found = pruner.select(spans.tokens(), keep)
    assert found.index[0].tolist() == dominant + anchors
    np.testing.assert_allclose(found.features[0], np.stack(rows), atol=1e-5)


@pytest.mark.parametrize(("keep", "contextual"), [(192, 30), (128, 20), (64, 10), (1, 0), (640, 100)])
def test_visionzip_splits_as_the_paper(keep, contextual):
    assert method("visionzip")._split(keep) == contextual


def test_visionzip_can_average_behind_the_projector():
    before, behind = method("visionzip", 8), method("visionzip(merge=projected)", 8)
    spans = made_up(before, [24], [8], seed=4)
    # patches side by side are the projected features here, so both must agree
    same = Spans([spans.reads[PreProjector()][0].flatten(1)], [8], spans.reads)
    a, b = (p.select(same.tokens(), 8) for p in (before, behind))
    assert torch.equal(a.index, b.index)
    assert torch.allclose(a.features, b.features, atol=1e-6)
    assert PreProjector() not in behind.signals


# ---------------------------------------------------------------------- PruMerge


def slow_prumerge(spans: Spans, kept: list[int]) -> list[np.ndarray]:
    """Vectors of the `kept` tokens and of the merged rest."""
    attention, keys, patches = (v[0].double().numpy() for v in spans.reads.values())
    a, n = attention[0], len(keys)
    key = keys.mean(1) / np.linalg.norm(keys.mean(1), axis=1, keepdims=True)
    rows = []
    for i in kept:
        near = sorted((j for j in range(n) if j != i), key=lambda j: (-(key[i] @ key[j]), j))[:32]
        rows.append((patches[i] + sum(a[j] * patches[j] for j in near)).reshape(-1))
    rest = [j for j in range(n) if j not in kept]
    return [*rows, sum(a[j] * patches[j] for j in rest).reshape(-1)] if rest else rows


def outliers(a: np.ndarray) -> float:
    first, third = np.percentile(a, [25, 75])
    return sum(a > third + 1.5 * (third - first)) / len(a)


def by_attention(spans: Spans) -> list[int]:
    a = next(iter(spans.reads.values()))[0][0]
    return sorted(range(len(a)), key=lambda i: (-a[i].item(), i))


@pytest.mark.parametrize(("n", "keep"), [(50, 12), (20, 19), (34, 1)])
def test_prumerge_follows_its_formula(n, keep):
    pruner = method("prumerge", keep)
    spans = made_up(pruner, [n], [keep], seed=keep)
    order = by_attention(spans)
    found = pruner.select(spans.tokens(), keep)
    assert found.index[0].tolist() == order[:keep], "and the rest at its most attended token"
    np.testing.assert_allclose(found.features[0], np.stack(slow_prumerge(spans, order[: keep - 1])), atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_prumerge_adapts_to_outliers(seed):
    pruner = method("prumerge(adaptive=True)")
    spans = made_up(pruner, [90, 41], [45, 20], seed=seed)
    for values in spans.reads[pruner.signals[0]]:
        values.pow_(2)
    tokens = spans.tokens()
    rho = pruner.outliers(pruner.attention(tokens), tokens)
    found = pruner.select(tokens, 45)
    for i, n in enumerate((90, 41)):
        expected = outliers(spans.reads[pruner.signals[0]][i][0].double().numpy())
        assert rho[i].item() == expected > 0
        one = Spans([spans.features[i]], [1], {s: [v[i]] for s, v in spans.reads.items()})
        kept = found.index[i][found.index[i] >= 0].tolist()
        assert kept == by_attention(one)[: int(n * expected) + 1]
        rows = np.stack(slow_prumerge(one, kept[:-1]))
        np.testing.assert_allclose(found.features[i, : len(kept)], rows, atol=1e-4)


def test_prumerge_plus_adds_the_authors_grid():
    pruner = method("prumerge_plus(adaptive=True)")
    spans = made_up(pruner, [96], [48], seed=2)
    spans.reads[pruner.signals[0]][0].pow_(2)
    rho = outliers(spans.reads[pruner.signals[0]][0][0].double().numpy())
    top = by_attention(spans)[: int(96 * rho)]
    grid = [i for i in range(0, 95, int(int(1 / rho) / 3)) if i not in top]
    found = pruner.select(spans.tokens(), 48)
    kept = found.index[0][found.index[0] >= 0].tolist()
    assert kept[:-1] == top + grid
    assert kept[-1] == next(i for i in by_attention(spans) if i not in top + grid)
    np.testing.assert_allclose(found.features[0, : len(kept)], np.stack(slow_prumerge(spans, top + grid)), atol=1e-4)


def test_prumerge_plus_keeps_the_authors_fixed_count():
    pruner = method("prumerge_plus(official=True)", 0.125)
    spans = made_up(pruner, [96], [12], seed=2)
    top = by_attention(spans)[:12]
    grid = [i for i in range(4, 95, 8) if i not in top]
    assert chosen(pruner, spans.tokens())[0][:-1] == top + grid


@given(st.integers(2, 40), st.floats(0, 1), st.data())
@settings(max_examples=30)
def test_prumerge_plus_spaces_the_others_evenly(n, share, data):
    keep = data.draw(st.integers(1, n - 1))
    pruner = method(f"prumerge_plus(outliers_share={share})", keep)
    spans = made_up(pruner, [n], [keep], seed=n)
    kept = chosen(pruner, spans.tokens())[0]
    top = by_attention(spans)[: int(share * (keep - 1) + 0.5)]
    free = [i for i in range(n) if i not in top]
    more = keep - 1 - len(top)
    assert kept[:-1] == top + [free[j * len(free) // more] for j in range(more)]


def test_the_most_that_an_adaptive_count_keeps_can_be_given():
    for spec in ("prumerge(adaptive=True)", "prumerge_plus(adaptive=True)"):
        pruner = method(spec, 4)
        spans = made_up(pruner, [96], [4], seed=2)
        spans.reads[pruner.signals[0]][0].pow_(2)
        assert len(chosen(pruner, spans.tokens())[0]) == 4


# ---------------------------------------------------------------------- ToMe


@pytest.mark.parametrize("spec", ["tome", "tome(r=0.5)", "tome(r=1)"])
@pytest.mark.parametrize("n", [2, 5, 24])
def test_tome_down_to_one_token_is_the_mean_of_all(spec, n):
    pruner = method(spec, 1)
    spans = made_up(pruner, [n], [1], seed=n)
    found = pruner.select(spans.tokens(), 1)
    assert torch.allclose(found.features[0, 0], spans.features[0].mean(0), atol=1e-5)


@pytest.mark.parametrize("metric", ["features", "keys"])
@pytest.mark.parametrize(
    ("r", "rounds"), [(3, [3, 3, 3, 2]), (0.5, [10, 1]), (0.2, [4, 3, 2, 2]), (None, [2, 1, 1, 1])]
)
def test_tome_follows_its_formula(metric, r, rounds):
    n, k = 20, 20 - sum(rounds)
    pruner = method(f"tome(r={r}, metric={metric})", k)
    spans = made_up(pruner, [n], [k], seed=7)
    x = spans.features[0].double()
    compared = spans.reads[pruner.signals[0]][0].mean(1).double() if pruner.signals else x
    left = [(i, 1, compared[i], x[i]) for i in range(n)]
    for less in rounds:
        a, b = left[::2], left[1::2]
        best = [max(range(len(b)), key=lambda j, y=y: cosine_similarity(y, b[j][2], dim=0)) for _, _, y, _ in a]
        like = [cosine_similarity(t[2], b[j][2], dim=0).item() for t, j in zip(a, best, strict=True)]
        gone = sorted(range(len(a)), key=lambda i: -like[i])[:less]
        for j in range(len(b)):
            group = [b[j], *(a[i] for i in gone if best[i] == j)]
            size = sum(t[1] for t in group)
            b[j] = (b[j][0], size, *(sum(t[1] * t[c] for t in group) / size for c in (2, 3)))
        left = sorted([t for i, t in enumerate(a) if i not in gone] + b, key=lambda t: t[0])
    found = pruner.select(spans.tokens(), k)
    assert found.index[0].tolist() == [t[0] for t in left]
    assert found.size[0].tolist() == [t[1] for t in left]
    assert torch.allclose(found.features[0].double(), torch.stack([t[3] for t in left]), atol=1e-5)


# ---------------------------------------------------------------------- ToMe inside the encoder


def merge_round(x: Tensor, keys: Tensor, size: Tensor, place: list[int], less: int) -> tuple[Tensor, Tensor, list[int]]:
    """One round on the patches `x [n, D]` of an image, by their `keys [n, d]`."""
    unit = normalize(keys, dim=-1)
    best = (unit[::2] @ unit[1::2].T).max(1)
    gone = sorted(range(len(best.values)), key=lambda i: -best.values[i].item())[:less]
    x, size = x.clone(), size.clone()
    for j in range(1, len(x), 2):
        group = [j, *(2 * i for i in gone if 2 * best.indices[i] + 1 == j)]
        x[j] = (x[group] * size[group, None]).sum(0) / size[group].sum()
        size[j] = size[group].sum()
    left = [i for i in range(len(x)) if i % 2 or i // 2 not in gone]
    return x[left], size[left], [place[i] for i in left]


def attend(x: Tensor, project: Any, heads: int, size: Tensor) -> tuple[Tensor, Tensor]:
    """Proportional attention `[T, D]` over tokens of the sizes `[T]`, before the output projection; head-mean keys."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(0, 1) for t in project(x))
    logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + size.log()
    return (logits.softmax(-1) @ v).transpose(0, 1).flatten(1), k.mean(0)


def sizes_after(n: int, keep: float, last: int) -> list[int]:
    return [int(n * (1 - (1 - keep) * i / last) + 0.5) for i in range(1, last + 1)]


@pytest.mark.parametrize("family", ["llava", "llava_siglip"])
@pytest.mark.parametrize("impl", ["sdpa", "eager"])
def test_tome_in_the_tower_is_the_encoder_on_merged_tokens(family, impl):
    model, keep = tiny(family, impl), 0.4
    inputs = prompt(family, "ragged").inputs
    with vtc.compressed(model, "tome(at=vision)", keep=keep):
        model(**inputs, use_cache=False)
        report = model.vtc.report
        found = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    tower = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    prefix = int(family == "llava")
    x = tower.embeddings(inputs["pixel_values"])
    x = tower.pre_layrnorm(x) if prefix else x
    for item in range(len(x)):
        h, keys, size, place = x[item], x[item], torch.ones(16), list(range(16))
        for i, layer in enumerate(tower.encoder.layers[:3]):
            attention = layer.self_attn
            if i:
                less = len(place) - sizes_after(16, keep, 2)[i - 1]
                made, size, place = merge_round(h[prefix:], keys[prefix:], size, place, less)
                h = torch.cat([h[:prefix], made])
                assert place == report.steps[i - 1].kept[item].tolist()
            parts = [attention.q_proj, attention.k_proj, attention.v_proj]
            out, keys = attend(
                layer.layer_norm1(h), lambda y, p=parts: [m(y) for m in p], 4, torch.cat([torch.ones(prefix), size])
            )
            h = h + attention.out_proj(out)
            h = h + layer.mlp(layer.layer_norm2(h))
        expected = model.model.multi_modal_projector(h[prefix:])
        assert torch.allclose(found[item][place], expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["timm", "timm_average", "open_clip"])
def test_tome_in_a_bare_vit_is_the_vit_on_merged_tokens(kind):
    pytest.importorskip("timm")
    pytest.importorskip("open_clip")
    from bare_vits import IMAGES, build, prefix_of

    model, prefix, keep, seen = build(kind), prefix_of(kind), 0.3, {}
    blocks = model.transformer.resblocks if kind == "open_clip" else model.blocks
    handles = [
        blocks[0].register_forward_pre_hook(lambda m, a: seen.update(enter=a[0])),
        blocks[-1].register_forward_hook(lambda m, a, y: seen.update(leave=y)),
    ]
    with vtc.compressed(model, "tome(at=vision)", keep=keep):
        model(IMAGES)
        report = model.vtc.report
    for handle in handles:
        handle.remove()
    for item in range(len(IMAGES)):
        h, size, place = seen["enter"][item], torch.ones(16), list(range(16))
        keys = h
        for i, block in enumerate(blocks):
            if i:
                less = len(place) - sizes_after(16, keep, 3)[i - 1]
                made, size, place = merge_round(h[prefix:], keys[prefix:], size, place, less)
                h = torch.cat([h[:prefix], made])
                assert place == report.steps[i - 1].kept[item].tolist()
            whole = torch.cat([torch.ones(prefix), size])
            if kind == "open_clip":
                weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
                y = block.ln_1(h)
                out, keys = attend(y, lambda y, w=weight, b=bias: (y @ w.T + b).chunk(3, -1), 4, whole)
                h = h + block.attn.out_proj(out)
                h = h + block.mlp(block.ln_2(h))
            else:
                norms = block.attn.q_norm, block.attn.k_norm

                def project(y, block=block, norms=norms):
                    q, k, v = block.attn.qkv(y).unflatten(-1, (3, 4, -1)).unbind(1)
                    return norms[0](q).flatten(1), norms[1](k).flatten(1), v.flatten(1)

                out, keys = attend(block.norm1(h), project, 4, whole)
                h = h + block.attn.proj(out)
                h = h + block.mlp(block.norm2(h))
        assert torch.allclose(seen["leave"][item], h, atol=1e-4)


def test_a_vit_whose_attention_takes_no_mask_is_refused(monkeypatch):
    pytest.importorskip("timm")
    from bare_vits import build

    model = build("timm")
    monkeypatch.setattr(model.blocks[1].attn, "forward", lambda x: x)
    with pytest.raises(NotImplementedError, match="takes no mask for their sizes"):
        vtc.compress(model, "tome(at=vision)", keep=0.4)


@pytest.mark.parametrize("family", ["llava", "llava_siglip", "llava_sliding", "llava_next"])
def test_tome_in_the_tower_keeps_the_contracts(family):
    setting = Setting("tome(at=vision)", 0.4)
    pruned_equals_masked(setting, family, "ragged")
    batch_equals_one_by_one(setting, family, "ragged")


def test_tome_in_the_tower_waits_for_nothing():
    run(Setting("tome(at=vision)", 0.4), "llava", "one", counts_of("llava", "one"))


def test_tome_before_one_encoder_layer_keeps_the_number_asked():
    model = tiny("llava")
    with vtc.compressed(model, "tome(at=vision, layer=2, keep=5)"):
        model(**prompt("llava", "ragged").inputs)
        assert [len(k) for k in model.vtc.report.steps[0].kept] == [5] * 4


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_towers_with_several_patches_a_token_are_refused(family):
    with pytest.raises(NotImplementedError, match="one patch a token"):
        vtc.compress(tiny(family), "tome(at=vision)", keep=0.4)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("name", "family"), [(n, f) for n in ("prumerge", "prumerge_plus") for f in LACKING[n]])
def test_a_tower_without_a_class_token_is_refused(name, family):
    with pytest.raises(NotImplementedError, match="has no class token"):
        vtc.compress(tiny(family), name, keep=0.4)


@pytest.mark.parametrize("family", LACKING["visionzip"])
def test_resampled_tokens_are_refused_and_the_other_way_named(family):
    model = tiny(family)
    vtc.compress(model, "visionzip", keep=0.4)
    with pytest.raises(NotImplementedError, match="merge='projected'"):
        model(**prompt(family, "one").inputs)


def test_visionzip_behind_the_projector_runs_where_tokens_are_resampled():
    model = tiny("llava_onevision")
    with vtc.compressed(model, "visionzip(merge=projected, keep=5)"):
        assert model(**prompt("llava_onevision", "one").inputs).logits.isfinite().all()
        assert model.vtc.report.tokens_kept == 5


@pytest.mark.parametrize("spec", ["prumerge(adaptive=True)", "prumerge_plus(adaptive=True)"])
def test_an_adaptive_count_needs_no_keep(spec):
    model = tiny("llava")
    with vtc.compressed(model, spec):
        assert model(**prompt("llava", "ragged").inputs).logits.isfinite().all()
        kept = [len(k) for k in model.vtc.report.steps[0].kept]
    assert all(1 <= n < 16 for n in kept)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("visionzip(contextual=-1, keep=4)", "contextual=-1"),
        ("visionzip(contextual=1.5, keep=4)", "contextual=1.5"),
        ("visionzip(merge=nowhere, keep=4)", "merge='nowhere'"),
        ("prumerge(official=True, keep=4)", "official"),
        ("prumerge(official=True, adaptive=True, keep=0.5)", "official"),
        ("prumerge_plus(outliers_share=2, keep=4)", "outliers_share=2"),
        ("tome(r=0, keep=4)", "r=0"),
        ("tome(metric=values, keep=4)", "metric='values'"),
        ("tome(at=nowhere, keep=4)", "at='nowhere'"),
        ("tome(at=decoder, keep=4)", "does not go with"),
        ("tome(at=vision, keep=4)", "takes a fraction"),
    ],
)
def test_bad_parameters_are_named(spec, match):
    with pytest.raises(ValueError, match=match):
        vtc.parse(spec)
