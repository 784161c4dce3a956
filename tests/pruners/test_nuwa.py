"""Nuwa: both stages against plain loops in float64, how the average is divided, and what the decoder reads."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch
from golden_support import Served, tokens_of
from properties import Spans, check_selection, chosen
from zoo import prompt, tiny

import vtc
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.nuwa import ATTENTION, KEYS, LATE, TEXT, Nuwa
from vtc.pruners.signals import DecoderAttention, PreProjector, TextEmbeddings

pytestmark = pytest.mark.usefixtures("no_grad")
LAYOUTS = [
    Layout((Grid(6, 6),)),
    Layout((Grid(5, 7),)),  # smaller regions at two borders
    Layout((Grid(4, 4, "base"), Grid(4, 8, "mosaic"))),
    Layout((Grid(3, 4, "frame"), Grid(3, 4, "frame"), Grid(3, 4, "frame"))),
]


def make(layouts, budgets, seed=0, d=6, dtype=torch.float64):
    """Spans with all that the input stage may read, two patches a token."""
    g = torch.Generator().manual_seed(seed)
    sizes = [layout.tokens for layout in layouts]

    def draw(*shape):
        return [torch.randn(n, *shape, generator=g, dtype=torch.float64).to(dtype) for n in sizes]

    reads = {signal: draw(2, d) for signal in (KEYS, PreProjector(), *LATE)}
    reads[ATTENTION] = [3 * x.T for x in draw(2)]
    reads[ATTENTION] = [x.softmax(-1) for x in reads[ATTENTION]]
    return Spans(draw(2 * d), budgets, reads, layouts=layouts)


def slow_anchors(layout, score, budget, region, least):
    """The anchors, a region and a grid after the other."""
    places = layout.array.tolist()
    regions, grids = {}, {}
    for i, (grid, row, col) in enumerate(places):
        regions.setdefault((grid, row // region, col // region), []).append(i)
        grids.setdefault(grid, []).append(i)
    ordered = [sorted(inside, key=lambda i: -score[i]) for inside in regions.values()]
    n = next(n for n in range(1, region**2 + 1) if sum(len(r[:n]) for r in ordered) >= budget)
    candidates = {i for inside in ordered for i in inside[: max(n, least or 1)]}
    quota = [budget * len(inside) / len(places) for inside in grids.values()]
    counts = [int(q) for q in quota]
    for g in sorted(range(len(quota)), key=lambda g: counts[g] - quota[g])[: budget - sum(counts)]:
        counts[g] += 1
    found = []
    for inside, count in zip(grids.values(), counts, strict=True):
        found += sorted(inside, key=lambda i: (i not in candidates, -score[i]))[:count]
    return sorted(found)


def slow_merged(layout, anchors, pillars, v, x, reach, official):
    """What the anchors become."""
    places, made = layout.array.tolist(), []
    for i in anchors:
        total, sums, others = 0.0, np.zeros_like(x[0]), np.zeros_like(x[0])
        for j in range(len(x)):
            (gi, ri, ci), (gj, rj, cj) = places[i], places[j]
            if gi == gj:
                grid = layout.grids[gi]
                far = math.sqrt(reach * ((grid.rows - 1) ** 2 + (grid.cols - 1) ** 2))
                alike = max(0.0, v[i] @ v[j] / np.linalg.norm(v[i]) / np.linalg.norm(v[j]))
                weight = alike * (1 - min(1.0, math.hypot(ri - rj, ci - cj) / far))
                total += weight
                sums += weight * x[j]
                others += weight * x[j] * (i != j)
        made.append(x[i] if i in pillars else x[i] + others / total if official else sums / total)
    return np.array(made)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["square", "odd", "crops", "video"])
@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"region": 3, "reach": 0.08},
        {"per_region": 2, "pillars": 0.0},
        {"pillars": 0.7, "merge": "projected"},
        {"region": 1, "pillars": 1.0},
    ],
    ids=str,
)
def test_against_plain_loops(layout, official, params):
    pruner = vtc.parse("nuwa", keep=0.5, official=official, **params)[0]
    for seed, budget in enumerate((1, 5, 13, layout.tokens - 1)):
        spans = make([layout], [budget], seed)
        reads = {signal: values[0] for signal, values in spans.reads.items()}
        attention, norms = reads[ATTENTION].mean(0), reads[KEYS].norm(dim=-1).mean(-1)
        score = attention if official else attention * norms
        anchors = slow_anchors(layout, score.tolist(), budget, pruner.region, pruner.per_region)

        share = (0.45 if official else 0.25) if pruner.pillars is None else pruner.pillars
        values = (attention if official else norms)[anchors].numpy()
        pillars = {i for i, x in zip(anchors, values, strict=True) if share and x >= np.quantile(values, 1 - share)}
        x = (reads[PreProjector()].flatten(1) if pruner.merge == "encoder" else spans.features[0]).numpy()
        v = reads[PreProjector()].mean(1).numpy() if pruner.merge == "encoder" else x
        v = sum(reads[signal].mean(1) for signal in LATE).numpy() if official else v
        made = slow_merged(layout, anchors, pillars, v, x, pruner.reach, official)

        found = pruner.select(spans.tokens(), budget)
        assert found.index[0].tolist() == anchors
        for i, expected, features in zip(anchors, made, found.features[0], strict=True):
            # what is projected anew is the identity's here, and a pillar is not
            want = spans.features[0][i] if i in pillars else torch.from_numpy(expected)
            assert torch.allclose(features, want, atol=1e-9)


def test_spans_of_all_kinds_in_one_batch():
    budgets = [9, 4, 20, 30]
    check_selection(vtc.parse("nuwa(keep=0.5)")[0], make(LAYOUTS, budgets, dtype=torch.float32))
    check_selection(vtc.parse("nuwa(keep=0.5, official=True)")[0], make(LAYOUTS, budgets, dtype=torch.float32))


@pytest.mark.parametrize("official", [False, True])
def test_equal_tokens_go_by_position_and_a_budget_that_the_regions_give_is_spread(official):
    spans = make([Layout((Grid(6, 6),))], [9], dtype=torch.float32)
    for signal, values in spans.reads.items():
        values[0] = values[0][..., :1].expand(-1, 36) if signal == ATTENTION else values[0][:1].expand(36, -1, -1)
    found = chosen(vtc.parse("nuwa", keep=9, official=official)[0], spans.tokens())[0]
    assert found == [row * 6 + col for row in (0, 2, 4) for col in (0, 2, 4)]


def test_what_is_not_finite_gives_nothing():
    spans = make([Layout((Grid(4, 4),))], [4], dtype=torch.float32)
    clean = make([Layout((Grid(4, 4),))], [4], dtype=torch.float32)
    spans.reads[PreProjector()][0][3] = float("nan")
    spans.reads[KEYS][0][3] = clean.reads[KEYS][0][3] = float("inf")
    clean.reads[PreProjector()][0][3] = 0
    [pruner] = vtc.parse("nuwa(keep=4)")
    found, expected = (pruner.select(s.tokens(), 4) for s in (spans, clean))
    assert found.index.tolist() == expected.index.tolist()
    assert 3 not in found.index[0]
    assert torch.equal(found.features, expected.features)


@pytest.mark.parametrize(
    ("params", "depth", "kept"),
    [
        ({"keep": 64}, 32, [112, 16]),  # the paper's table of settings
        ({"keep": 128}, 32, [224, 32]),
        ({"keep": 192}, 32, [336, 48]),
        ({"keep": 0.25, "tail": 0.6}, 28, [0.35, 0.15]),
        ({"keep": 0.5, "tail": 0.8}, 28, [0.6, 0.4]),
        ({"keep": 0.75, "tail": 0.65 / 0.75}, 28, [0.85, 0.65]),
        ({"keep": 0.75}, 32, [1.0, 0.5]),
        ({"keep": 0.3, "tail": 1}, 32, [0.3]),
    ],
)
def test_keep_is_the_average_over_the_layers(params, depth, kept):
    stops = vtc.parse("nuwa", **params)[0].stops(depth)
    assert [stop.keep for stop in stops] == pytest.approx(kept)
    assert [(stop.stage, stop.layer) for stop in stops] == [("input", None), ("decoder", depth // 2)][: len(kept)]


@pytest.mark.parametrize("average", [64, 128, 192])
def test_candidates_of_a_region_are_as_many_as_the_authors_have(average):
    spans = make([Layout((Grid(24, 24),))], [average * 7 // 4], dtype=torch.float32)
    given = chosen(vtc.parse("nuwa", keep=average, per_region=average // 64)[0], spans.tokens())
    assert chosen(vtc.parse("nuwa", keep=average)[0], spans.tokens()) == given


def test_the_decoder_stage_in_plain_numbers():
    """Two samples; the first has text behind its picture, the second none."""
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 12, 5, generator=g), torch.randn(2, 4, 5, generator=g)
    source = Served({TEXT[0]: x}, {TextEmbeddings(): text}, torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]]).bool())
    read = source.text_valid
    source.text_valid = lambda tokens: read(tokens) if tokens else torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    tokens = tokens_of(torch.zeros(2, 12, 1), 5, source, stage="decoder", layer=3)
    found = vtc.parse("nuwa(keep=0.5)")[0].select(tokens, 5)
    for i, question in enumerate((text[0, 2:].mean(0), text[1, :3].mean(0))):
        cosines = [float(row @ question / row.norm() / question.norm()) for row in x[i]]
        assert found[i].tolist() == sorted(range(12), key=lambda j: -cosines[j])[:5]


def test_the_authors_decoder_stage_is_the_last_tokens_attention():
    looks = torch.rand(2, 3, 1, 12, generator=torch.Generator().manual_seed(1))
    tokens = tokens_of(torch.zeros(2, 12, 1), 5, Served({DecoderAttention(): looks}), stage="decoder", layer=3)
    found = vtc.parse("nuwa(keep=0.5, official=True)")[0].select(tokens, 5)
    assert found.tolist() == looks[:, :, 0].mean(1).sort(descending=True).indices[:, :5].tolist()


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("shape", ["one", "ragged"])
def test_the_question_chooses_among_what_was_merged(family, shape):
    merged, entered = {}, {}
    read = Nuwa._entered

    def watched(self, tokens):
        found = read(self, tokens)
        merged.update({span: features for span, (_, features) in tokens.state["entered"].items()})
        entered.update({span: (row[ids >= 0]) for span, row, ids in zip(tokens.span, found, tokens.ids, strict=True)})
        return found

    model = tiny(family)
    with mock.patch.object(Nuwa, "_entered", watched), vtc.compressed(model, "nuwa(keep=0.4)"):
        model(**prompt(family, shape).inputs)
        report = model.vtc.report
    assert merged.keys() == entered.keys() == set(range(len(report.spans)))
    assert all(torch.equal(merged[span], entered[span]) for span in merged)


@pytest.mark.parametrize(
    "spec",
    [
        "nuwa(tail=0)",
        "nuwa(tail=1.5)",
        "nuwa(pillars=-0.1)",
        "nuwa(reach=0)",
        "nuwa(region=0)",
        "nuwa(per_region=0)",
        "nuwa(merge=both)",
    ],
)
def test_values_out_of_range_are_named(spec):
    name = spec[5:].partition("=")[0]
    with pytest.raises(ValueError, match=rf"nuwa\.{name}=.*(must be|allowed are)"):
        vtc.parse(spec)
