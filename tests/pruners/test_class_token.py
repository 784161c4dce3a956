"""VisPruner, HiRED, VScan and HoloV against their formulas written out."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from golden_support import Served, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import layout_of
from properties import Spans, chosen
from zoo import prompt, tiny

import vtc
from vtc.pruners.base import Merged
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import AttentionAhead, EncoderAttention, PreProjector
from vtc.pruners.vscan import windows

pytestmark = pytest.mark.usefixtures("no_grad")
SPECS = {
    "vispruner": {"step": 3},
    "hired": {},
    "vscan": {"window": 3, "ratio": 1, "shallow": 5},
    "holov": {"crops": 4},
}


def method(name: str, keep: int | float | None = None, **params: object) -> vtc.Pruner:
    return vtc.parse(name, keep=keep, **{**SPECS[name], **params})[0]  # type: ignore[arg-type]


def spans_of(layouts: list[Layout], seed: int, keep: float) -> Spans:
    g = torch.Generator().manual_seed(seed)
    sizes = [layout.tokens for layout in layouts]
    features = [torch.randn(n, 6, generator=g) for n in sizes]
    rows: dict = {
        signal: [torch.rand(2, n, generator=g) for n in sizes]
        for signal in (EncoderAttention(), EncoderAttention(layer=0), EncoderAttention(layer=5))
    }
    reads = {**rows, PreProjector(): [f[:, None] for f in features]}
    return Spans(features, [max(1, int(keep * n)) for n in sizes], reads, layouts=layouts)


# ---------------------------------------------------------------------- VisPruner


def slow_vispruner(x: np.ndarray, attention: np.ndarray, keep: int, important: float, step: int) -> list[int]:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    order = sorted(range(len(x)), key=lambda i: (-attention[i], i))
    top = int(keep * important)
    kept, rest = order[:top], order[top:]
    while len(rest) > keep - top:
        even, odd = rest[::2], rest[1::2]
        like = {i: max((unit[i] @ unit[j] for j in odd), default=-2) for i in even}
        even.sort(key=lambda i: -like[i])
        rest = even[min(step, len(rest) - (keep - top)) :] + odd
    return kept + rest


@given(st.integers(2, 40), st.integers(0, 9999), st.floats(0.05, 1), st.floats(0, 1), st.integers(1, 9))
@settings(max_examples=60)
def test_vispruner_is_its_formula(n, seed, share, important, step):
    keep = max(1, int(share * n))
    spans = spans_of([Layout.line(n)], seed, share)
    pruner = method("vispruner", keep, important=important, step=step)
    attention = spans.reads[EncoderAttention()][0].mean(0).double().numpy()
    want = slow_vispruner(spans.features[0].double().numpy(), attention, keep, important, step)
    assert sorted(chosen(pruner, spans.tokens())[0]) == sorted(want)


# ---------------------------------------------------------------------- HiRED


def slow_hired(layout: Layout, shallow: np.ndarray, deep: np.ndarray, keep: int, alpha: float) -> tuple[list, dict]:
    """The parts' budgets by the spatial reading, largest remainder; only for crops that can hold their share."""
    base, mosaic = layout.grids
    n0 = base.rows * base.cols
    part = layout.parts()
    b0 = min(int(keep * alpha), n0)
    marked = sorted(range(n0), key=lambda i: (-shallow[i], i))[: int(n0 * (1 - alpha))]
    votes: Counter = Counter()
    for i in marked:
        y, x = (i // base.cols + 0.5) / base.rows * mosaic.rows, (i % base.cols + 0.5) / base.cols * mosaic.cols
        votes[int(part[n0 + int(y) * mosaic.cols + int(x)])] += 1
    exact = {j: votes[j] / len(marked) * (keep - b0) for j in range(1, part.max() + 1)}
    budget = {j: math.floor(q + 1e-6) for j, q in exact.items()}
    best = {j: sorted(np.flatnonzero(part == j), key=lambda i: (-deep[i], i)) for j in range(part.max() + 1)}
    # equal remainders: the lowest token
    left = sorted(exact, key=lambda j: (round(budget[j] - exact[j], 4), best[j][budget[j]]))
    for j in left[: keep - b0 - sum(budget.values())]:
        budget[j] += 1
    budget[0] = b0
    kept: list[int] = []
    for j, b in budget.items():
        kept += best[j][:b]
    return sorted(kept), budget


@pytest.mark.parametrize("seed", range(8))
def test_hired_gives_crops_the_marks_that_lie_there(seed):
    side = 6
    mosaic = Grid(2 * side, 3 * side - 4, "mosaic", newline="none", cuts=((side,), (side - 2, 2 * side - 2)))
    layout = Layout((Grid(side, side, "base"), mosaic))
    g = torch.Generator().manual_seed(seed)
    rows = [torch.rand(1, 3, layout.tokens, generator=g) ** 2 for _ in range(2)]
    rows[0][..., : side * side // 2] *= 2  # the upper half of the picture is what matters
    keep, alpha = 60, 0.4
    pruner = method("hired", keep, alpha=alpha)
    source = Served(dict(zip(pruner.signals, rows, strict=True)))
    found = pruner.select(tokens_of(np.zeros((layout.tokens, 1), np.float32), keep, source, [layout]), keep)[0]
    shallow, deep = (r[0].double().sum(0).numpy() for r in rows)
    want, budget = slow_hired(layout, shallow, deep, keep, alpha)
    assert sorted(found.tolist()) == want
    assert budget[0] == 24
    assert sum(budget[j] for j in (1, 2, 3)) > sum(budget[j] for j in (4, 5, 6)), "the upper crops get more"


def test_hired_fills_up_where_crops_are_thin():
    layout = Layout((Grid(8, 8, "base"), Grid(8, 2, "mosaic", cuts=((), ()))))
    rows = torch.rand(1, 2, 80)
    pruner = method("hired", 70)
    source = Served(dict.fromkeys(pruner.signals, rows))
    kept = pruner.select(tokens_of(np.zeros((80, 1), np.float32), 70, source, [layout]), 70)[0]
    assert len(set(kept.tolist())) == 70
    assert set(range(64, 80)) <= set(kept.tolist()), "all of the crop, and the rest of the whole picture"
    official = method("hired", 70, official=True)
    kept = official.select(tokens_of(np.zeros((80, 1), np.float32), 70, source, [layout]), 70)[0]
    assert int((kept >= 0).sum()) == 35 + 16 < 70
    assert official.adaptive_count
    assert not pruner.adaptive_count


def test_hired_without_crops_is_the_top_by_attention():
    rows = torch.rand(1, 2, 16)
    pruner = method("hired", 5)
    source = Served(dict.fromkeys(pruner.signals, rows))
    kept = pruner.select(tokens_of(np.zeros((16, 1), np.float32), 5, source), 5)[0]
    assert sorted(kept.tolist()) == sorted(rows[0].sum(0).topk(5).indices.tolist())


# ---------------------------------------------------------------------- VScan


def test_windows_begin_anew_in_every_crop_and_cover_the_picture():
    found = windows(Layout((Grid(24, 24),)), 6).reshape(24, 24)
    assert np.array_equal(found, np.arange(24)[:, None] // 6 * 4 + np.arange(24) // 6)
    layout = Layout((Grid(4, 5), Grid(7, 5, "mosaic", "row", cuts=((3,), ()))))
    found, (grid, row, col) = windows(layout, 2), layout.array.T
    where = {}
    for w, g, r, c in zip(found, grid, row, col, strict=True):
        if c >= 0:
            top = 0 if g == 0 or r < 3 else 3
            where.setdefault(w, set()).add((g, top, (r - top) // 2, c // 2))
    assert all(len(cells) == 1 for cells in where.values()), "one cell each"
    assert len(where) == 2 * 3 + (2 + 2) * 3, "and one window for each cell"
    assert len(windows(Layout.line(7), 3)) == 7


def vscan_on(layout: Layout, keep: int, seed: int = 0, **params: object) -> tuple[Merged, torch.Tensor, list]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1, layout.tokens, 5, generator=g)
    rows = [torch.rand(1, 2, layout.tokens, generator=g) for _ in range(2)]
    pruner = method("vscan", keep, **params)
    tokens = tokens_of(x, keep, Served(dict(zip(pruner.signals, rows, strict=False))), [layout])
    found = pruner.select(tokens, keep)
    assert isinstance(found, Merged)
    return found, x[0], [r[0].mean(0) for r in rows]


@pytest.mark.parametrize(("keep", "share"), [(12, 0.5), (13, 0.5), (8, 0.0), (9, 1.0), (21, 0.3)])
def test_vscan_takes_from_every_window_then_from_all_and_merges_the_rest(keep, share):
    layout = Layout((Grid(6, 6),))
    found, x, (shallow, deep) = vscan_on(layout, keep, window=3, global_ratio=share)
    near, part = int(keep * (1 - share)), windows(layout, 3)
    local: list[int] = []
    for w in range(4):  # equal windows: the first ones get one more
        inside = sorted(np.flatnonzero(part == w), key=lambda i: -shallow[i])
        local += inside[: near // 4 + (w < near % 4)]
    rest = sorted(set(range(36)) - set(local), key=lambda i: -deep[i])
    kept = sorted(int(i) for i in local + rest[: keep - near])
    assert found.index[0].tolist() == kept
    groups = {i: [i] for i in kept}
    for i in set(range(36)) - set(kept):
        near_to = torch.nn.functional.cosine_similarity(x[i][None], x[kept])
        groups[kept[int(near_to.argmax())]].append(i)
    want = torch.stack([x[sorted(groups[i])].mean(0) for i in kept])
    assert torch.allclose(found.features[0], want, atol=1e-5)


def test_vscan_merges_the_same_beside_longer_spans():
    spans = spans_of([layout_of(*shape) for shape in (("image", 6, 6), ("image", 3, 4), ("crops", 5, 5))], 1, 0.4)
    pruner = method("vscan", 0.4)
    both = pruner.select(spans.tokens(), max(spans.budgets))
    for i, k in enumerate(spans.budgets):
        alone = pruner.select(spans.tokens([i]), k)
        assert torch.equal(both.index[i, :k], alone.index[0])
        assert torch.allclose(both.features[i, :k], alone.features[0], atol=1e-5)


def test_vscan_official_keeps_the_same_of_every_window():
    found, _, _ = vscan_on(Layout((Grid(6, 6),)), 14, window=3, official=True)
    kept = found.index[0][found.index[0] >= 0]
    assert len(kept) == 7 // 4 * 4 + 7


def test_vscan_prunes_twice_and_each_stage_alone():
    pruner = vtc.parse("vscan(keep=0.1)")[0]
    assert [s[:3] for s in pruner.stops(32)] == [("input", None, pytest.approx(0.3)), ("decoder", 16, 0.1)]
    assert pruner.stops(28)[1].layer == 14
    assert [s[:3] for s in vtc.parse("vscan(keep=32)")[0].stops(32)] == [("input", None, 96), ("decoder", 16, 32)]
    assert [s.stage for s in vtc.parse("vscan(keep=0.1, ratio=1)")[0].stops(32)] == ["input"]
    model = tiny("llava")
    with vtc.compressed(model, "vscan(keep=4, ratio=2, window=2)"):
        model(**prompt("llava", "ragged").inputs)
        steps = model.vtc.report.steps
        assert [(s.stage, s.layer) for s in steps] == [("input", None), ("decoder", 3)]
        assert [len(k) for s in steps for k in s.kept] == [8] * 4 + [4] * 4
    rows = torch.rand(1, 2, 1, 10)
    tokens = tokens_of(np.zeros((10, 1), np.float32), 3, Served({AttentionAhead(): rows}), stage="decoder", layer=3)
    assert sorted(pruner.select(tokens, 3)[0].tolist()) == sorted(rows[0, :, 0].mean(0).topk(3).indices.tolist())


# ---------------------------------------------------------------------- HoloV


def slow_holov(x: np.ndarray, attention: np.ndarray, keep: int, crops: int, alpha: float) -> list[int]:
    """For spans that divide evenly into runs large enough for their budgets."""
    m, weight = len(x) // crops, []
    runs = [np.arange(p * m, (p + 1) * m) for p in range(crops)]
    for run in runs:
        unit = x[run] / np.linalg.norm(x[run], axis=1, keepdims=True)
        s = unit @ unit.T
        np.fill_diagonal(s, 0)
        mean = s.sum(1) / (m - 1)
        var = ((s - mean[:, None]) ** 2).sum(1) / (m - 1)
        a = 1000 * attention[run]
        weight.append((a + alpha * var * a.mean() / (var.mean() + 1e-6)).mean())
    share = np.array(weight) / sum(weight)
    budget = np.floor(share * keep).astype(int)
    for p in sorted(range(crops), key=lambda p: (-share[p], p))[: keep - budget.sum()]:
        budget[p] += 1
    kept: list[int] = []
    for run, b in zip(runs, budget, strict=True):
        assert b <= m
        kept += sorted(run, key=lambda i: (-attention[i], i))[:b]
    return [int(i) for i in kept]


@pytest.mark.parametrize("seed", range(10))
def test_holov_is_its_formula(seed):
    g = torch.Generator().manual_seed(seed)
    x, rows = torch.randn(48, 6, generator=g), torch.rand(2, 48, generator=g)
    if seed % 2:
        x[12:24] = x[12]  # a blank run: its variance doesn't cancel
    spans = Spans([x], [17], {EncoderAttention(): [rows]})
    want = slow_holov(x.double().numpy(), rows.double().mean(0).numpy(), 17, 4, 0.09)
    assert chosen(method("holov", 17), spans.tokens())[0] == want


def test_holov_hands_on_what_a_run_is_too_small_for():
    rows = torch.full((1, 1, 16), 0.01)
    rows[..., :4] = 1.0  # all of the budget belongs to the first run
    x = torch.randn(1, 16, 4)
    for official, count in ((False, 8), (True, 4)):
        pruner = method("holov", 8, official=official)
        kept = pruner.select(tokens_of(x, 8, Served({EncoderAttention(): rows})), 8)[0]
        kept = [i for i in kept.tolist() if i >= 0]
        assert len(kept) == count
        assert kept[:4] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("hired(alpha=1.5, keep=2)", "alpha"),
        ("vispruner(important=-1, keep=2)", "important"),
        ("vispruner(step=0, keep=2)", "step"),
        ("holov(crops=0, keep=2)", "crops"),
        ("vscan(ratio=0.5, keep=2)", "ratio"),
        ("vscan(window=0, keep=2)", "window"),
        ("vscan(global_ratio=2, keep=2)", "global_ratio"),
    ],
)
def test_bad_parameters_are_named(spec, match):
    with pytest.raises(ValueError, match=match):
        vtc.parse(spec)
