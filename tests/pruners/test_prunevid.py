"""PruneVid: scenes, both stages against plain loops in float64, and the parts that the decoder chooses from."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import groupby
from unittest import mock

import pytest
import torch
from golden_support import Served, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import Spans, check_selection, chosen
from zoo import prompt, tiny

import vtc
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.prunevid import LOOKS, PruneVid, scenes_of
from vtc.pruners.signals import TextEmbeddings

pytestmark = pytest.mark.usefixtures("no_grad")
LAYOUTS = [
    Layout((Grid(4, 5, "frame"),) * 9),
    Layout((Grid(3, 4, "frame"),) * 5),
    Layout((Grid(4, 4, "base"), Grid(4, 8, "mosaic"))),
    Layout((Grid(6, 6),)),
]


def clip(frames, places, d=8, seed=0, cuts=(3, 7), noise=0.9):
    """Frames `[T * P, d]` of a few pictures, some of whose places move."""
    g = torch.Generator().manual_seed(seed)
    pictures = torch.randn(len(cuts) + 1, places, d, generator=g, dtype=torch.float64)
    moves = noise * torch.rand(places, 1, generator=g, dtype=torch.float64)
    x = pictures[torch.bucketize(torch.arange(frames), torch.tensor(cuts), right=True)]
    return (x + moves * torch.randn(frames, places, d, generator=g, dtype=torch.float64)).flatten(0, 1)


def make(layouts, budgets, seed=0, dtype=torch.float64):
    sizes = [(len(x.grids), x.grids[0].tokens) if x.grids[0].kind == "frame" else (1, x.tokens) for x in layouts]
    return Spans([clip(t, p, seed=seed + t).to(dtype) for t, p in sizes], budgets, layouts=layouts)


# ---------------------------------------------------------------------- plain loops


def slow_clusters(x, count, neighbours):
    """Centres best first, and the centre of each row."""
    far = [[math.dist(a, b) / math.sqrt(len(a)) for b in x] for a in x]
    near = [sorted(row)[:neighbours] for row in far]
    density = [math.exp(-sum(d * d for d in row) / len(row)) for row in near]
    most = max(max(row) for row in far)
    score = [
        rho * min([d for d, other in zip(row, density, strict=True) if other > rho], default=most)
        for rho, row in zip(density, far, strict=True)
    ]
    centres = sorted(range(len(x)), key=lambda i: -score[i])[:count]
    return centres, [i if i in centres else min(centres, key=lambda c: far[i][c]) for i in range(len(x))]


def slow_scenes(labels):
    """`(start, stop)` of each scene: runs of clusters, of which only the longest count."""
    runs, start = [], 0
    for label, run in groupby(labels):
        size = len(list(run))
        runs.append((label, start, size))
        start += size
    longest = {label: max(n for other, _, n in runs if other == label) for label, *_ in runs}
    stay = [(label, start, n) for label, start, n in runs if n == longest[label] > 1]
    if not stay:
        return [(0, len(labels))]
    found = []  # label, start, stop
    for label, start, n in stay:
        gap = found[-1][2] if found else 0
        if found and (start == gap or found[-1][2] - found[-1][1] >= n):
            found[-1][2] = start
            gap = start
        if found and found[-1][0] == label:
            found[-1][2] = start + n
        else:
            found.append([label, gap, start + n])
    found[-1][2] = len(labels)
    return [(start, stop) for _, start, stop in found]


def slow_parts(x, frames, pruner):
    """The parts of a video `[T, P, d]`: a list of (column, vector) each, and the columns of what else stands still."""
    means = x.mean(1).tolist()
    wanted = max(1, int(frames * pruner.scenes))
    scenes = slow_scenes(slow_clusters(means, wanted, pruner.neighbours)[1])
    unit, places = x / x.norm(dim=-1, keepdim=True), x.shape[1]
    moving, still, rest = [], [], []
    for start, stop in scenes:
        size, stands = stop - start, []
        for i in range(places):
            pairs = [float(unit[s, i] @ unit[t, i]) for s in range(start, stop) for t in range(start, s)]
            if size > 1 and sum(pairs) * 2 / (size * (size - 1)) > pruner.tau:
                stands.append(i)
        moving += [[(t * places + i, x[t, i]) for i in range(places) if i not in stands] for t in range(start, stop)]
        still.append([(start * places + i, x[start:stop, i].mean(0)) for i in stands])
        rest += [t * places + i for t in range(start + 1, stop) for i in stands]
    return moving, still, rest


def shares(parts, budget):
    """Of `parts`, lists of columns best first, how many each keeps: by the largest remainder, the lowest of equals."""
    total = sum(map(len, parts))
    keys = [
        (place - Fraction(budget * len(part), total), column, i)
        for i, part in enumerate(parts)
        for place, column in enumerate(part)
    ]
    kept = [i for *_, i in sorted(keys)[:budget]]
    return [kept.count(i) for i in range(len(parts))]


def ranked(part, neighbours):
    """Columns of a part, the best centre first."""
    return [part[i][0] for i in slow_clusters([x.tolist() for _, x in part], len(part), neighbours)[0]] if part else []


def slow_merged(parts, counts, neighbours):
    """Column and vector of each cluster."""
    made = {}
    for part, count in zip(parts, counts, strict=True):
        if not count:
            continue
        centres, owner = slow_clusters([x.tolist() for _, x in part], count, neighbours)
        for c in centres:
            inside = [x for (_, x), own in zip(part, owner, strict=True) if own == c]
            made[part[c][0]] = torch.stack(inside).mean(0)
    return made


# ---------------------------------------------------------------------- the input stage


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=8), st.integers(0, 3))
@settings(max_examples=60)
def test_scenes_are_the_longest_runs_and_take_in_what_lies_between(runs, padding):
    labels = [label for label, n in runs for _ in range(n)]
    row = torch.tensor([labels + [9] * padding])
    begin = scenes_of(row, row < 9)[0, : len(labels)].tolist()
    assert begin == [start for start, stop in slow_scenes(labels) for _ in range(start, stop)]


@pytest.mark.parametrize(
    ("labels", "begins"),
    [
        ([0, 0, 0, 1, 0, 0, 2, 2], [0, 0, 0, 0, 0, 0, 6, 6]),  # the shorter run of 0 joins the left one
        ([0, 0, 1, 2, 2, 2], [0, 0, 2, 2, 2, 2]),  # the longer neighbour
        ([0, 0, 1, 2, 2], [0, 0, 0, 3, 3]),  # of equal ones the left
        ([3, 0, 0], [0, 0, 0]),
        ([0, 1, 2], [0, 0, 0]),  # no run at all
        ([0, 0, 1, 0, 0], [0, 0, 0, 0, 0]),  # two longest runs, joined by what lies between
    ],
)
def test_scenes_of_a_few_frames(labels, begins):
    row = torch.tensor([labels])
    assert scenes_of(row, row >= 0)[0].tolist() == begins


@pytest.mark.parametrize("params", [{}, {"tau": 0.6, "scenes": 0.5}, {"tau": 0.95, "neighbours": 3}], ids=str)
@pytest.mark.parametrize(("frames", "places"), [(9, 12), (12, 20), (2, 6), (1, 30)])
def test_merging_against_plain_loops(frames, places, params):
    [pruner] = vtc.parse("prunevid", keep=0.4, **params)
    for seed in range(4):
        x = clip(frames, places, seed=seed)
        moving, still, rest = slow_parts(x.view(frames, places, -1), frames, pruner)
        parts = moving + [part for part in still if part]
        sizes = [len(part) for part in parts if part]
        for budget in {1 + frames, frames * places // 3, sum(sizes)}:
            budget = min(budget, sum(sizes))
            left = {(n, budget * n % sum(sizes)) for n in sizes}
            if len(left) > len({r for _, r in left}):
                continue  # parts of different sizes with equal remainders: rounding decides
            counts = shares([ranked(part, pruner.neighbours) for part in parts], budget)
            expected = slow_merged(parts, counts, pruner.neighbours)
            layout = Layout((Grid(1, places, "frame"),) * frames)
            found = pruner.select(tokens_of(x.numpy(), budget, layouts=[layout]), budget)
            assert found.index[0].tolist() == sorted(expected)
            made = torch.stack([expected[c] for c in sorted(expected)])
            assert torch.allclose(found.features[0], made, atol=1e-6)  # weights are float32
        if rest:  # what is asked beyond the parts are still tokens of later frames, as they are
            more = sum(sizes) + 1
            tokens = tokens_of(x.numpy(), more, layouts=[Layout((Grid(1, places, "frame"),) * frames)])
            assert set(chosen(pruner, tokens)[0]) & set(rest) == {rest[0]}


@pytest.mark.parametrize("cluster", [0.5, 0.3, 1.0])
def test_the_authors_counts_against_plain_loops(cluster):
    [pruner] = vtc.parse("prunevid", official=True, cluster=cluster)
    x = clip(8, 30, seed=3)
    moving, still, _ = slow_parts(x.view(8, 30, -1), 8, pruner)
    parts = [part for part in moving + still if part]
    assert {len(part) > 14 for part in parts} == {True, False}
    counts = [int(len(part) * cluster) if len(part) > 14 else len(part) for part in parts]
    expected = slow_merged(parts, counts, 7)
    tokens = tokens_of(x.numpy(), 120, layouts=[Layout((Grid(1, 30, "frame"),) * 8)])
    assert chosen(pruner, tokens)[0] == sorted(expected)


@pytest.mark.parametrize("spec", ["prunevid(keep=0.4)", "prunevid(official=True)", "prunevid(tau=0, keep=0.4)"])
def test_spans_of_all_kinds_in_one_batch(spec):
    check_selection(vtc.parse(spec)[0], make(LAYOUTS, [70, 13, 20, 9], dtype=torch.float32))


def test_a_video_that_stands_still_is_one_picture():
    x = clip(1, 12).repeat(6, 1)
    [pruner] = vtc.parse("prunevid(keep=0.1)")
    found = pruner.select(tokens_of(x.numpy(), 12, layouts=[Layout((Grid(3, 4, "frame"),) * 6)]), 12)
    assert found.index[0].tolist() == list(range(12))
    assert torch.allclose(found.features[0], x[:12])


# ---------------------------------------------------------------------- the decoder stage


def looks_of(x, budget, behind, seed=0, heads=1, texts=5):
    """The decoder's tokens `[B, N, 1]` of a line each, and the attention that they get from the text."""
    looks = torch.rand(len(x), heads, texts, x.shape[1], generator=torch.Generator().manual_seed(seed))
    source = Served({LOOKS: looks}, {TextEmbeddings(): torch.zeros(len(x), texts, 1)}, behind)
    return tokens_of(x, budget, source, stage="decoder", layer=3), looks


def test_of_each_part_those_stay_that_the_text_looks_at_most():
    behind = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]).bool()
    tokens, looks = looks_of(torch.zeros(2, 12, 1), 5, behind)
    part = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1])
    tokens.layouts = [Layout((Grid(2, 2, "frame"),) * 3)] * 2
    tokens.state["parts"] = {0: (torch.arange(12), part)}  # the second span kept all: its parts are its frames
    found = vtc.parse("prunevid(keep=0.4)")[0].select(tokens, 5)
    for row, asks, sizes in ((0, (2, 3, 4), (4, 8)), (1, (1, 2), (4, 4, 4))):
        score = looks[row, 0, list(asks)].amax(0).tolist()
        parts = torch.arange(12).split(sizes)
        best = [sorted(part.tolist(), key=lambda i: -score[i]) for part in parts]
        expected = [c for part, n in zip(best, shares(best, 5), strict=True) for c in part[:n]]
        assert found[row].tolist() == sorted(expected)


def test_the_authors_counts_of_the_decoder_are_rounded_down():
    tokens, looks = looks_of(torch.zeros(1, 12, 1), 1, torch.ones(1, 5).bool())
    sizes = (2, 3, 7)
    tokens.layouts = [Layout((Grid(2, 2, "frame"),) * 3)]
    tokens.state["parts"] = {
        0: (torch.arange(12), torch.repeat_interleave(torch.tensor([0, 3, 4]), torch.tensor(sizes)))
    }
    [found] = chosen(vtc.parse("prunevid(official=True)")[0], tokens)
    score = looks[0, 0].amax(0).tolist()
    assert found == sorted(
        [max(range(2, 5), key=lambda i: score[i]), *sorted(range(5, 12), key=lambda i: -score[i])[:2]]
    )


@pytest.mark.parametrize("texts", [3, 0])
def test_without_text_behind_it_the_first_of_a_span_stay(texts):
    tokens, _ = looks_of(torch.zeros(1, 8, 1), 3, torch.zeros(1, texts).bool(), texts=texts)
    assert vtc.parse("prunevid(keep=3)")[0].select(tokens, 3).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(("family", "shape"), [("llava", "ragged"), ("qwen2_5_vl", "video"), ("llava_next", "one")])
def test_the_decoder_finds_the_parts_of_the_input_stage(family, shape):
    seen, read = [], PruneVid._looked_at

    def watched(self, tokens, frames, k):
        seen.append((set(tokens.span), set(tokens.state["parts"]), tokens.layer))
        for span, ids in zip(tokens.span, tokens.ids, strict=True):
            assert set(ids[ids >= 0].tolist()) <= set(tokens.state["parts"][span][0].tolist())
        return read(self, tokens, frames, k)

    model = tiny(family)
    with mock.patch.object(PruneVid, "_looked_at", watched), vtc.compressed(model, "prunevid(keep=0.2, layer=3)"):
        model(**prompt(family, shape).inputs)
        report = model.vtc.report
    assert seen
    assert all(spans <= noted and layer == 3 for spans, noted, layer in seen)
    assert [(step.stage, step.layer) for step in report.steps] == [("input", None), ("decoder", 3)]


# ---------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("params", "depth", "kept"),
    [
        ({"keep": 0.162}, 32, [0.405, 0.162]),  # PLLaVA in the paper
        ({"keep": 100}, 32, [250, 100]),
        ({"keep": 0.5}, 32, [1.0, 0.5]),
        ({"keep": 0.3, "tail": 0.5}, 6, [0.6, 0.3]),
        ({"keep": 0.3, "tail": 1}, 32, [0.3]),
        ({"official": True}, 32, [0.5, 1]),
        ({"official": True, "keep": 0.9}, 32, [0.5, 1]),
        ({"official": True, "keep": 1.0}, 32, [1.0, 1.0]),
    ],
)
def test_what_each_stage_keeps(params, depth, kept):
    [pruner] = vtc.parse("prunevid", **params)
    stops = pruner.stops(depth)
    assert [stop.keep for stop in stops] == pytest.approx(kept)
    layers = [("input", None), ("decoder", {32: 11, 6: 2}[depth])]
    assert [(stop.stage, stop.layer) for stop in stops] == layers[: len(kept)]
    assert [pruner.signals_at(stop) for stop in stops] == [(), (LOOKS,)][: len(kept)]


@pytest.mark.parametrize(
    "spec",
    [
        "prunevid(tail=0)",
        "prunevid(tail=1.2)",
        "prunevid(scenes=0)",
        "prunevid(cluster=1.5)",
        "prunevid(tau=-0.1)",
        "prunevid(neighbours=0)",
    ],
)
def test_values_out_of_range_are_named(spec):
    name = spec[9:].partition("=")[0]
    with pytest.raises(ValueError, match=rf"prunevid\.{name}=.*must be"):
        vtc.parse(spec)
