"""The methods inside the decoder: their formulas, and budgets over several stops."""

from __future__ import annotations

import math
import random

import pytest
import torch
from golden_support import Served, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import Spans, chosen
from reference import hidden_per_layer, text_model
from torch.nn.functional import cosine_similarity
from zoo import prompt, tiny

import vtc
from vtc.pruners.base import Merged, Stop
from vtc.pruners.primitives.budget_over_stops import pyramid, scaled_layer, two_stage
from vtc.pruners.primitives.clustering import cluster_means, dpc_knn
from vtc.pruners.signals import (
    AttentionAhead,
    DecoderAttention,
    DecoderHidden,
    DecoderKeys,
    Projected,
    TextEmbeddings,
)

pytestmark = pytest.mark.usefixtures("no_grad")
HEADS, WIDTH, KEYS = 3, 16, 8


def make(counts, budgets, seed=0, text=5):
    """Spans with everything that a decoder method can read."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g)

    states = (DecoderHidden(), DecoderHidden(layer=1), Projected())
    reads = {signal: [draw(n, WIDTH) for n in counts] for signal in states}
    reads[DecoderKeys()] = [draw(n, KEYS) for n in counts]
    for signal, queries in ((DecoderAttention(), 1), (DecoderAttention(queries="text"), text), (AttentionAhead(), 1)):
        reads[signal] = [draw(HEADS, queries, n).softmax(-1) for n in counts]
    texts = {s: [draw(text, WIDTH) for _ in counts] for s in (*states[:2], TextEmbeddings())}
    texts[DecoderKeys()] = [draw(text, KEYS) for _ in counts]
    return Spans([draw(n, WIDTH) for n in counts], budgets, reads, texts, stage="decoder", layer=2)


@pytest.mark.parametrize("spec", ["fastv", "priortr", "pyramiddrop", "sparsevlm(recycle=False)"])
def test_a_score_that_is_not_finite_is_the_lowest(spec):
    given_spans = make([9], [6], seed=1)
    for values in given_spans.reads.values():
        values[0][..., 1] = float("nan")
        values[0][..., 4] = float("inf")
        values[0][..., 7] = float("-inf")
    assert not {1, 4, 7} & set(chosen(vtc.parse(spec)[0], given_spans.tokens())[0])


# ---------------------------------------------------------------------- DART


def slow_dart(states, norms, text_states, text_norms, shares, order):
    """DART with plain loops: `shares` and `order` of the pivots (image pivots first, by falling norm)."""
    image = sorted(range(len(norms)), key=lambda i: -norms[i])[:4]
    text = sorted(range(len(text_norms)), key=lambda i: -text_norms[i])[:4]
    pivots = [states[i] for i in image] + [text_states[i] for i in text]
    kept = list(image)
    for turn in order(image, text):
        left = [i for i in range(len(states)) if i not in kept]
        left.sort(key=lambda i: float(cosine_similarity(pivots[turn], states[i], dim=0)))
        kept += left[: shares[turn]]
    return sorted(kept)


@pytest.mark.parametrize(("keep", "q"), [(24, 3), (25, 3), (31, 3), (0.5, 2), (7, 0), (39, 4)])
def test_official_dart_against_plain_loops(keep, q):
    budget = keep if isinstance(keep, int) else 20
    one = make([40], [budget], seed=8, text=9)
    tokens = one.tokens()
    start = 35
    system = torch.zeros(1, start, KEYS)
    source = tokens.source
    source.text_of = {
        DecoderKeys(): torch.cat([system, source.text_of[DecoderKeys()]], 1),
        DecoderHidden(): torch.cat([torch.zeros(1, start, WIDTH), source.text_of[DecoderHidden()]], 1),
    }
    source.behind = (torch.arange(start + 9) >= start)[None]
    norms = one.reads[DecoderKeys()][0].abs().sum(-1).tolist()
    text_norms = one.texts[DecoderKeys()][0].abs().sum(-1).tolist()

    def order(image, text):
        absolute = [start + i for i in image] + [start + 40 + i for i in text]
        return [absolute.index(p) for p in set(absolute)]

    expected = slow_dart(one.features[0], norms, one.texts[DecoderHidden()][0], text_norms, [q] * 8, order)
    found = chosen(vtc.parse("dart", keep=keep, official=True)[0], tokens)[0]
    assert sorted(found) == expected
    assert len(found) == 4 + 8 * q


def test_angelslim_stops_at_the_count_and_takes_pivots_from_all_text():
    one = make([40], [17], seed=9, text=9)
    tokens = one.tokens()
    tokens.source.behind = (torch.arange(9) >= 5)[None]  # its pivots may stand before the picture all the same
    norms = one.reads[DecoderKeys()][0].abs().sum(-1).tolist()
    text_norms = one.texts[DecoderKeys()][0].abs().sum(-1).tolist()
    shares = [2, 2, 2, 2, 2, 2, 1, 0]  # ceil(13 / 8) each until there are 17
    states, text_states = one.reads[Projected()][0], one.texts[TextEmbeddings()][0]
    expected = slow_dart(states, norms, text_states, text_norms, shares, lambda image, text: range(8))
    assert sorted(chosen(vtc.parse("dart", keep=17, layer=1, variant="angelslim")[0], tokens)[0]) == expected


def test_official_dart_keeps_its_own_count_in_a_model():
    model = tiny("llava")
    with vtc.compressed(model, "dart(keep=9, official=True)"):
        model(**prompt("llava", "ragged").inputs)
        report = model.vtc.report
    assert {len(s.columns) for s in report.spans} == {16}
    assert [len(k) for k in report.steps[0].kept] == [4 + 8] * len(report.spans)


# ---------------------------------------------------------------------- several stops


@given(
    st.floats(0.05, 1.0), st.integers(4, 40), st.floats(0.1, 0.9), st.none() | st.floats(0.01, 0.5), st.integers(0, 3)
)
def test_two_stages_meet_the_average(average, depth, share, tail, start):
    layer = max(start + 1, min(depth - 1, round(share * depth)))
    if not start < layer < depth:
        return
    try:
        first, last = two_stage(average, depth, layer, tail, start)
    except ValueError:
        tail = 0.2 * average if tail is None else tail
        assert (average * depth - start - tail * (depth - layer)) / (layer - start) < tail
        return
    assert 0 < last <= first <= 1 or last == pytest.approx(first)
    assert (start + first * (layer - start) + last * (depth - layer)) / depth == pytest.approx(average)


@given(st.integers(1, 400), st.integers(4, 40), st.data())
def test_counts_meet_the_average_from_below_within_a_token(average, depth, data):
    layer = data.draw(st.integers(1, depth - 1))
    tail = data.draw(st.integers(0, average))
    first, last = two_stage(average, depth, layer, tail)
    assert last == tail
    mean = (first * layer + last * (depth - layer)) / depth
    assert average - 1 < mean <= average


@pytest.mark.parametrize(
    ("average", "layer", "tail", "start", "expected"),
    [(192, 20, 38, 0, 284), (64, 20, 10, 0, 96), (192, 20, 38, 2, 252), (64, 20, 27, 1, 60)],
)
def test_two_stages_of_the_paper(average, layer, tail, start, expected):
    assert two_stage(average, 32, layer, tail, start, tokens=576) == (expected, tail)


def test_deep_random_costs_what_was_asked_and_is_its_two_methods():
    model, inputs = tiny("llava"), prompt("llava", "ragged").inputs
    spec = "deep_random(first=divprune, keep=8, layer=4, tail=4, seed=3)"
    with vtc.compressed(model, spec):
        logits = model(**inputs).logits
        report = model.vtc.report
    assert [(s.stage, s.layer, len(s.kept[0])) for s in report.steps] == [("input", None, 10), ("decoder", 4, 4)]
    assert report.mean_tokens_per_layer == 8 * len(report.spans)
    with vtc.compressed(model, "divprune(keep=10) + random(layer=4, keep=4, seed=3)"):
        assert torch.equal(model(**inputs).logits, logits)
    with vtc.compressed(model, "deep_random(first=fastv, keep=0.5, layer=4, first_params={'layer': 1})"):
        model(**inputs)
        steps = model.vtc.report.steps
        assert [(s.stage, s.layer) for s in steps] == [("decoder", 1), ("decoder", 4)]
    with vtc.compressed(model, "deep_random(first=dart, keep=0.6, layer=4, tail=0)"):
        model(**inputs)
        assert model.vtc.report.tokens_kept == 0


def test_deep_random_has_its_first_methods_flags():
    assert vtc.parse("deep_random(first=fastv)")[0].uses_attention
    assert vtc.parse("deep_random(first=dart, first_params={'official': True})")[0].adaptive_count
    assert not vtc.parse("deep_random")[0].uses_text


@given(st.floats(0.01, 1.0), st.integers(1, 5))
def test_a_pyramid_of_fractions_falls_evenly_to_its_end(keep, stops):
    found = pyramid(keep, stops)
    assert found[-1] == keep
    steps = [b / a for a, b in zip((1.0, *found), found, strict=False)]
    assert all(s == pytest.approx(keep ** (1 / stops)) for s in steps)


def test_pyramids_of_counts_and_with_a_ratio():
    assert pyramid(64, 3) == (256, 128, 64)
    assert pyramid(0.5, 3, 0.5) == (1.0, 1.0, 0.5)
    assert pyramid(1, 3, 0.5) == (4, 2, 1)
    assert [scaled_layer(8, 32, d) for d in (32, 28, 6, 2)] == [8, 7, 2, 1]


def test_pyramiddrop_prunes_three_times_by_the_layers_own_attention():
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    with vtc.compressed(model, "pyramiddrop"):
        model(**inputs)
        report = model.vtc.report
    assert [(s.layer, len(s.kept[0])) for s in report.steps] == [(2, 8), (3, 4), (5, 2)]
    plain = tiny("llava", "eager")(**inputs, output_attentions=True)
    score = plain.attentions[2][0, :, -1, report.spans[0].columns].mean(0)
    assert report.steps[0].kept[0].tolist() == sorted(score.topk(8).indices.tolist())


def test_vtw_leaves_no_visual_token_behind_its_layer():
    model, inputs = tiny("llava"), prompt("llava", "ragged").inputs
    with vtc.compressed(model, "vtw(layer=2)"):
        out = model(**inputs, use_cache=True)
        report = model.vtc.report
    total = report.tokens_total
    assert report.tokens_per_layer == [total, total, 0, 0, 0, 0]
    hidden = hidden_per_layer(report, *inputs["input_ids"].shape, 6)[2:]
    text = (inputs["attention_mask"].bool() & ~hidden[0]).sum(1).max()
    assert [layer.keys.shape[-2] for layer in out.past_key_values.layers][2:] == [int(text)] * 4


@pytest.mark.parametrize(("keep", "layer"), [(0.47, 15), (0.5, 16), (0.01, 1), (0.99, None), (1.0, None)])
def test_vtw_keeps_a_share_of_the_layers(keep, layer):
    expected = () if layer is None else (Stop("decoder", layer, 0),)
    assert vtc.parse("vtw", keep=keep)[0].stops(32) == expected


@pytest.mark.parametrize("seed", [0, 7, 12345])
def test_official_random_is_pythons_sample(seed):
    pruner = vtc.parse("random", keep=12, seed=seed, official=True)[0]
    tokens = tokens_of(torch.zeros(3, 40, 2), [12, 5, 1])
    expected = [sorted(random.Random(seed).sample(range(40), k)) for k in (12, 5, 1)]
    assert chosen(pruner, tokens) == expected


# ---------------------------------------------------------------------- SparseVLM and its clusters


def slow_dpc(x, clusters, neighbours):
    """Density peaks with plain loops, in float64."""
    n = len(x)
    d = [[math.dist(x[i], x[j]) / math.sqrt(len(x[0])) for j in range(n)] for i in range(n)]
    density = [math.exp(-sum(v * v for v in sorted(d[i])[:neighbours]) / neighbours) for i in range(n)]
    far = max(map(max, d))
    gap = [min([d[i][j] for j in range(n) if density[j] > density[i]], default=far) for i in range(n)]
    centres = sorted(range(n), key=lambda i: -density[i] * gap[i])[:clusters]
    owner = [min(range(clusters), key=lambda c: d[i][centres[c]]) for i in range(n)]
    for c, i in enumerate(centres):
        owner[i] = c
    return centres, owner


@given(st.integers(3, 30), st.integers(0, 999), st.data())
@settings(max_examples=40)
def test_density_peaks_against_plain_loops(n, seed, data):
    clusters = data.draw(st.integers(1, n))
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    other = torch.randn(n + 3, 6, generator=torch.Generator().manual_seed(seed + 1))
    both = torch.stack([torch.cat([x, torch.zeros(3, 6)]), other])
    valid = torch.ones(2, n + 3, dtype=torch.bool)
    valid[0, n:] = False
    counts = torch.tensor([clusters, max(1, clusters - 1)])
    found = dpc_knn(both, counts, counts, clusters, valid)
    centres, owner = slow_dpc(x.double().tolist(), clusters, clusters)
    assert found.centres[0].tolist() == centres
    assert found.owner[0, :n].tolist() == owner
    assert set(found.owner[0, n:].tolist()) == {found.centres.shape[1]}
    means = cluster_means(both, found.owner, clusters)[0]
    for c in range(clusters):
        mine = x[[i for i in range(n) if owner[i] == c]]
        assert torch.allclose(means[c], mine.mean(0), atol=1e-5)


def test_equal_points_have_their_lowest_as_centres():
    x = torch.ones(1, 12, 5)
    found = dpc_knn(x, 3, 3, 3)
    assert found.centres.tolist() == [[0, 1, 2]]
    assert found.owner[0, :4].tolist() == [0, 1, 2, 0]


def test_large_distances_do_not_vanish():
    x = 1e4 * torch.randn(1, 20, 5, generator=torch.Generator().manual_seed(0))
    centres, owner = slow_dpc((x[0] / 1e4).tolist(), 4, 1)  # with one neighbour, itself, the density is the same
    assert dpc_knn(x, 4, 1, 4).centres[0].tolist() == centres
    assert dpc_knn(x, 4, 1, 4).owner[0].tolist() == owner


def slow_sparsevlm(one, k, clusters):
    """Raters, scores, and merged vectors of the first span, with plain loops."""
    relevance = (one.reads[Projected()][0] @ one.texts[TextEmbeddings()][0].T).softmax(-1).mean(0)
    raters = [j for j, m in enumerate(relevance.tolist()) if m > float(relevance.mean())]
    rows = one.reads[DecoderAttention(queries="text")][0].mean(0)
    score = rows[raters].mean(0).tolist()
    order = sorted(range(len(score)), key=lambda i: -score[i])
    kept = order[: k - clusters]
    gone = len(order) - len(kept)
    recycled = order[len(kept) : len(kept) + int(0.3 * gone) + 1]
    x = one.features[0][recycled]
    centres, owner = slow_dpc(x.double().tolist(), clusters, clusters)
    means = [x[[i for i in range(len(x)) if owner[i] == c]].mean(0) for c in range(clusters)]
    return raters, kept, [recycled[c] for c in centres], means


@pytest.mark.parametrize(("keep", "official"), [(12, False), (12, True), (2, False)])
def test_sparsevlm_against_plain_loops(keep, official):
    one = make([60, 31], [keep, 5], seed=6, text=7)
    clusters = (int(0.3 * (60 - keep)) + 1) // 10 + 1
    if not official:
        clusters = min(clusters, keep - 1)
    total = keep + clusters if official else keep
    raters, kept, centres, means = slow_sparsevlm(one, total, clusters)
    pruner = vtc.parse("sparsevlm", keep=keep, official=official)[0]
    tokens = one.tokens()
    assert pruner.raters(tokens)[0].nonzero()[:, 0].tolist() == raters
    found = pruner.select(tokens, keep)
    assert isinstance(found, Merged)
    assert found.index[0, :total].tolist() == kept + centres
    assert torch.allclose(found.features[0, : len(kept)], one.features[0][kept])
    assert torch.allclose(found.features[0, len(kept) : total], torch.stack(means), atol=1e-5)


def test_sparsevlms_adaptive_count_is_the_papers_rule():
    one = make([40], [1], seed=2, text=6)
    tokens = one.tokens()
    pruner = vtc.parse("sparsevlm(rank_scale=0.8, recycle=False)")[0]
    rank = int(pruner.raters(tokens)[0].sum())  # random rows are independent
    assert len(chosen(pruner, one.tokens())[0]) == 40 - int(0.8 * (40 - rank))
    least = vtc.parse("sparsevlm(keep=30, rank_scale=0.8, recycle=False)")[0]
    assert len(chosen(least, make([40], [30], seed=2, text=6).tokens())[0]) == 30


def test_sparsevlms_raters_are_found_once_from_all_tokens(monkeypatch):
    """At the later stops fewer tokens are left; the raters stay those of the first."""
    cls = vtc.pruner_class("sparsevlm")
    seen, asked = [], []
    find, raters = cls._find_raters, cls.raters
    monkeypatch.setattr(cls, "_find_raters", staticmethod(lambda t: seen.append(list(t.counts)) or find(t)))
    monkeypatch.setattr(cls, "raters", lambda self, t: asked.append(raters(self, t)) or asked[-1])
    model, inputs = tiny("llava"), prompt("llava", "ragged").inputs
    with vtc.compressed(model, "sparsevlm(keep=0.2, layers=(1, 3, 4))"):
        for _ in range(2):
            model(**inputs)
            assert seen.pop() == [16] * 4
            assert seen == []
            assert all(torch.equal(asked[0], found) for found in asked)
            asked.clear()


def test_sparsevlm_reads_the_models_own_attention_and_embeddings():
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    with vtc.compressed(model, "sparsevlm(keep=6, layers=(2,), recycle=False)"):
        model(**inputs)
        report = model.vtc.report
    eager, seen = tiny("llava", "eager"), {}
    hook = text_model(eager).layers[0].register_forward_pre_hook(lambda m, a: seen.update(embeddings=a[0]))
    attention = eager(**inputs, output_attentions=True).attentions[1][0]
    hook.remove()
    columns = report.spans[0].columns
    text = torch.arange(int(columns[-1]) + 1, inputs["input_ids"].shape[1])
    image_states, text_states = seen["embeddings"][0, columns], seen["embeddings"][0, text]
    relevance = (image_states @ text_states.T).softmax(-1).mean(0)
    score = attention[:, text[relevance > relevance.mean()]][..., columns].mean((0, 1))
    assert report.steps[0].kept[0].tolist() == sorted(score.topk(6).indices.tolist())


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("dart(variant=other)", "variant='other'"),
        ("dart(variant=angelslim, official=True)", "official"),
        ("pyramiddrop(ratio=0)", "ratio=0"),
        ("pyramiddrop(layers=(4, 2))", "rise"),
        ("sparsevlm(budget=100)", "192, 128, 64"),
        ("sparsevlm(budget=64, keep=3)", "keep and budget"),
        ("sparsevlm(budget=64, rank_scale=0.5)", "budget and rank_scale"),
        ("sparsevlm(counts=(3, 0))", "counts"),
        ("sparsevlm(rank_scale=2)", "rank_scale=2"),
        ("vtw(keep=3)", "fraction"),
        ("vtw(keep=0.5, layer=3)", "give one"),
        ("deep_random(first=deep_random)", "another method"),
        ("deep_random(first=nuwa)", "must prune once"),
        ("deep_random(first=nothing)", "unknown pruner 'nothing'"),
        ("deep_random(first=sparsevlm)", "prune once"),
        ("deep_random(first=vtw)", "prune once"),
        ("deep_random(first=dart, first_params={'keep': 3})", "follows from the average"),
    ],
)
def test_bad_parameters_are_named(spec, match):
    with pytest.raises((ValueError, TypeError), match=match):
        vtc.parse(spec)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("deep_random(first=dart, keep=8)", "tokens=576"),
        ("deep_random(first=dart, keep=0.3)", "can't be met"),
        ("deep_random(first=dart, keep=0.9, layer=2)", "must rise"),
        ("deep_random(keep=8, tail=0.1)", "both as counts"),
        ("sparsevlm(counts=(9, 4), layers=(1, 2, 3))", "2 counts for the 3 layers"),
        ("vtw(layer=6)", "layer=6 is out of range"),
        ("deep_random", "needs keep"),
    ],
)
def test_what_does_not_fit_the_model_is_told_when_wrapping(spec, match):
    with pytest.raises(ValueError, match=match):
        vtc.compress(tiny("llava"), spec)


@pytest.mark.parametrize(
    "spec",
    [
        "sparsevlm(counts=(9, 6, 4), layers=(1, 3, 4))",
        "pyramiddrop(layers=(1, 4), ratio=0.7)",
        "deep_random(first=dart, keep=0.6, first_params={'layer': 1})",
        "vtw(layer=3)",
    ],
)
def test_saved_and_read_back(spec, tmp_path):
    config = vtc.VTCConfig.of(vtc.parse(spec))
    config.save_pretrained(tmp_path)
    again = vtc.VTCConfig.from_pretrained(tmp_path).pipeline()
    assert again == vtc.parse(spec)
    assert vtc.parse(vtc.format_pipeline(again)) == again


def test_served_signals_are_those_declared():
    """The stand-in would serve anything: here a model refuses what a method has not declared."""
    model, inputs = tiny("qwen2_5_vl"), prompt("qwen2_5_vl", "one").inputs
    for spec in ("dart(variant=angelslim, layer=1, keep=5)", "dart(variant=angelslim, layer=3, keep=5)"):
        with vtc.compressed(model, spec):
            model(**inputs)
            assert [len(k) for k in model.vtc.report.steps[0].kept] == [5]
    assert Served().read_of == {}
