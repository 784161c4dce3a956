"""G-Prune against its formulas written out: links, flow, degrees, graphs of their own, equal tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain

import pytest
import torch
from made_up import layout_of
from properties import Spans, check_selection, chosen, peak_bytes

import vtc
from vtc.pruners.layout import Grid, Layout

pytestmark = pytest.mark.usefixtures("no_grad")
CASES = [(0.5, 0.03, 5), (0.2, 0.3, 1), (0.7, 0.1, 8), (1.0, 0.03, 2)]


def slow_scores(rows, similarity, temperature, iterations):
    """The formula with plain numbers; `rows [N][D]`."""
    lengths = [math.sqrt(sum(x * x for x in row)) for row in rows]
    weights, degrees = [], []
    for i, a in enumerate(rows):
        like = [
            1.0 if i == j else sum(x * y for x, y in zip(a, b, strict=True)) / (lengths[i] * lengths[j])
            for j, b in enumerate(rows)
        ]
        linked = [math.exp(s / temperature) if s >= similarity else 0.0 for s in like]
        weights.append([w / sum(linked) for w in linked])
        degrees.append(sum(w > 0 for w in linked))
    had = lengths
    for _ in range(iterations):
        had = [sum(v * row[j] for v, row in zip(had, weights, strict=True)) for j in range(len(rows))]
    return [v / d for v, d in zip(had, degrees, strict=True)]


def clustered(n, seed, dims=6):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1 + n // 4, dims, generator=g)[torch.arange(n) * 7 % (1 + n // 4)] + 0.6 * torch.randn(
        n, dims, generator=g
    )


def test_by_hand():
    """Two that are alike (cosine 0.8) and a longer one by itself; a link weighs a third beside a token's own two."""
    x = torch.tensor([[5.0, 0.0, 0.0], [4.0, 3.0, 0.0], [0.0, 0.0, 10.0]])
    pruner = vtc.parse("gprune(keep=2, iterations=1)", temperature=0.2 / math.log(2))[0]
    score, part, count = pruner.score(Spans([x], [2]).tokens())
    assert score[0].tolist() == pytest.approx([2.5, 2.5, 10.0])
    assert part.tolist() == [[0, 0, 0]]
    assert count == 1
    assert chosen(pruner, Spans([x], [2]).tokens()) == [[0, 2]]
    score = pruner.score(Spans([x * torch.tensor([[1.0], [4.0], [1.0]])], [2]).tokens())[0]
    assert score[0].tolist() == pytest.approx([(10 + 20) / 3 / 2, (5 + 40) / 3 / 2, 10.0])


@pytest.mark.parametrize(("similarity", "temperature", "iterations"), CASES)
def test_the_formula_in_plain_numbers(similarity, temperature, iterations):
    options = {"similarity": similarity, "temperature": temperature, "iterations": iterations}
    pruner = vtc.parse("gprune", keep=6, **options)[0]
    features = [clustered(n, n) for n in (24, 17, 9)]
    spans = Spans(features, [6, 6, 6])
    found = pruner.score(spans.tokens())[0]
    for row, x in zip(found, features, strict=True):
        expected = torch.tensor(slow_scores(x.double().tolist(), **options), dtype=torch.float64)
        torch.testing.assert_close(row[: len(x)], expected, rtol=1e-5, atol=0)
    for kept, x in zip(check_selection(pruner, spans), features, strict=True):
        score = slow_scores(x.double().tolist(), **options)
        assert kept == sorted(sorted(range(len(x)), key=lambda i: (-score[i], i))[:6])


@pytest.mark.parametrize("keep", [9, 0.3, 31])
def test_thumbnail_and_mosaic_and_frames_are_graphs_of_their_own(keep):
    crops = Layout((Grid(3, 3, "base"), Grid(5, 6, "mosaic", "row", cuts=((3,), (3,)))))
    frames = layout_of("frames", 3, 4)
    pruner = vtc.parse("gprune", keep=keep)[0]
    for layout, sizes in ((crops, (9, 30)), (frames, (12, 12, 12))):
        x = clustered(sum(sizes), 3)
        k = vtc.pruners.base.resolve_keep(keep, len(x))
        tokens = Spans([x], [k], layouts=[Layout.line(len(x))]).tokens()
        tokens.layouts = [layout]
        tokens.ids = torch.tensor([[i for i, (_, _, col) in enumerate(layout.array) if col >= 0]])
        expected = [slow_scores(part.double().tolist(), 0.5, 0.03, 5) for part in x.split(sizes)]
        torch.testing.assert_close(
            pruner.score(tokens)[0][0],
            torch.tensor(list(chain(*expected)), dtype=torch.float64),
            rtol=1e-5,
            atol=0,
        )
        quota = [k * n / len(x) for n in sizes]
        keys, start = {}, 0
        for score, share in zip(expected, quota, strict=True):
            for rank, i in enumerate(sorted(range(len(score)), key=lambda i: (-score[i], i))):
                keys[start + i] = share - rank
            start += len(score)
        assert chosen(pruner, tokens) == [sorted(sorted(keys, key=lambda i: (-keys[i], i))[:k])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_equal_tokens_go_to_the_lowest_index_wherever_they_stand(dtype):
    g = torch.Generator().manual_seed(1)
    kinds = torch.randn(37, 128, generator=g).to(dtype)
    twin = torch.randint(0, 37, (700,), generator=g)
    spans = Spans([kinds[twin]], [300])
    score = vtc.parse("gprune(keep=300, similarity=0.1)")[0].score(spans.tokens())[0][0]
    assert score.unique().numel() == twin.unique().numel()
    best = sorted(range(700), key=lambda i: (-score[i].item(), i))[:300]
    assert chosen(vtc.parse("gprune(keep=300, similarity=0.1)")[0], spans.tokens()) == [sorted(best)]


def test_zeros_score_nothing_and_what_is_not_finite_comes_last():
    x = clustered(12, 5)
    x[2], x[7, 1], x[9, 0] = 0, float("nan"), float("inf")
    pruner = vtc.parse("gprune", keep=9)[0]
    score = pruner.score(Spans([x], [9]).tokens())[0][0]
    rest = [i for i in range(12) if i not in (2, 7, 9)]
    expected = slow_scores(x[rest].double().tolist(), 0.5, 0.03, 5)
    torch.testing.assert_close(score[rest], torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)
    assert score[2] == 0
    assert chosen(pruner, Spans([x], [9]).tokens()) == [rest]
    assert chosen(vtc.parse("gprune", keep=11)[0], Spans([x], [11]).tokens()) == [sorted([*rest, 2, 7])]


@pytest.mark.parametrize(("frames", "limit"), [(1, 4), (16, 2)])
def test_memory_at_full_size(frames, limit):
    """A picture's matrix of links is held once and a block beside it; of a video's graphs a few at a time."""
    side = 48 if frames == 1 else 14
    layout = Layout((Grid(side, side, "image" if frames == 1 else "frame"),) * frames)
    n = layout.tokens

    def make():
        x = torch.zeros(n, 4096, dtype=torch.bfloat16)
        return Spans([x], [n // 4], layouts=[layout]).tokens()

    pruner = vtc.parse("gprune", keep=0.25)[0]
    matrix = 8 * (n // frames) ** 2
    assert 0 < peak_bytes(make, lambda tokens: pruner.select(tokens, n // 4)) <= limit * max(matrix, 2 * n * 4096)


@pytest.mark.parametrize("wrong", ["similarity=0", "similarity=1.1", "temperature=0", "iterations=0"])
def test_refused(wrong):
    with pytest.raises(ValueError, match=rf"gprune\.{wrong.partition('=')[0]}=.* is out of range; it must be"):
        vtc.parse(f"gprune({wrong})")


def test_tokens_that_are_gone_are_nobodys_copies():
    """A place without a token stands for the first one that is left, which must not become its copy."""
    x, grid = clustered(12, 5), Layout((Grid(3, 4),))
    left = [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    pruner = vtc.parse("gprune(keep=4, similarity=0.2)")[0]
    whole = Spans([x[left]], [4], layouts=[grid]).tokens()
    tokens = replace(whole, ids=torch.tensor([left]))
    alone = pruner.score(Spans([x[left]], [4]).tokens())[0]
    assert torch.equal(pruner.score(tokens)[0], alone)
    assert alone[0, 0] > 0
