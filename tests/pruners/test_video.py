"""EVS, DyCoke, VidCom2 and FastVID against their formulas written out, and what methods for video promise."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from contract_checks import batch_equals_one_by_one, pruned_equals_masked
from fake_runs import counts_of, run
from golden_support import Served, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st
from merging_tools import DTYPES, UNIT, WIDTH, made_up, method
from methods import Setting
from properties import Spans, check_selection, chosen, peak_bytes
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from zoo import FAMILIES, shapes_of

import vtc
from vtc.pruners import fastvid
from vtc.pruners.base import resolve_keep
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.primitives import clustering, merging
from vtc.pruners.primitives.crops_and_frames import frames_of, spread_order
from vtc.pruners.signals import EncoderAttention, PreProjector
from vtc.pruners.visual_tokens import VisualTokens

pytestmark = pytest.mark.usefixtures("no_grad")
NAMES = ("evs", "dycoke", "vidcom2", "fastvid", "holitom")
AT_THE_INPUT = (*NAMES, "prunevid(tail=1)")
SPECS = (*AT_THE_INPUT, "fastvid(segments=2, context=0.7, every=2, weight=0)")
OFFICIAL = (
    "evs(official=True)",
    "dycoke(official=True)",
    "vidcom2(official=True)",
    "fastvid(official=True)",
    "holitom(official=True)",
    "prunevid(official=True, tail=1, cluster=0.1)",
)
VIDEOS = [f for f in FAMILIES if "clip" in shapes_of(FAMILIES[f], ("clip",))]


def video(frames: int, rows: int, cols: int) -> Layout:
    return Layout((Grid(rows, cols, "frame"),) * frames)


def clip(spec: str, frames: int, rows: int, cols: int, keep: int, seed: int = 0, noise: float = 0.5) -> tuple:
    """A method and a video whose frames resemble each other."""
    pruner = method(spec, keep)
    spans = made_up(pruner, [frames * rows * cols], [keep], seed, layouts=[video(frames, rows, cols)])
    g = torch.Generator().manual_seed(seed + 1)
    picture = torch.randn(1, rows * cols, UNIT * WIDTH, generator=g)
    spans.features = [
        (picture + noise * torch.randn(frames, rows * cols, UNIT * WIDTH, generator=g)).flatten(0, 1)  # type: ignore[list-item]
    ]
    return pruner, spans


shapes = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 4), st.integers(1, 4), st.floats(0.01, 1)), min_size=1, max_size=3
)


@pytest.mark.parametrize("spec", SPECS)
@given(shapes, st.integers(0, 9999), st.sampled_from(DTYPES), st.booleans())
@settings(max_examples=25)
def test_every_choice_is_exact_unique_and_the_same_alone(spec, cases, seed, dtype, copies):
    layouts = [video(t, h, w) if t else Layout((Grid(h, w, "base"), Grid(2 * h, w, "mosaic"))) for t, h, w, _ in cases]
    budgets = [max(1, int(share * x.tokens)) for x, (*_, share) in zip(layouts, cases, strict=True)]
    pruner = method(spec, 4)
    spans = made_up(pruner, [x.tokens for x in layouts], budgets, seed, dtype, copies, layouts)
    # VidCom2: the two tokens of an image of two are equally far from their mean, and rounding decides
    tied = any(x.tokens == 2 for x in layouts) or two_are_left(pruner, spans)
    check_selection(pruner, spans, alone=not copies and dtype is torch.float32 and not tied)


def two_are_left(pruner: vtc.Pruner, spans: Spans) -> bool:
    """FastVID: whether a frame has two tokens left to choose an anchor from, each as dense as the other."""
    with pytest.MonkeyPatch.context() as patch:
        left: list[bool] = []
        peaks = fastvid.peaks_in_blocks
        note = lambda x, free, n: left.append(bool((free.sum(-1) == 2).any())) or peaks(x, free, n)  # noqa: E731
        patch.setattr(fastvid, "peaks_in_blocks", note)
        chosen(pruner, spans.tokens())
    return any(left)


@pytest.mark.parametrize("spec", OFFICIAL)
@given(shapes, st.integers(0, 9999))
@settings(max_examples=25)
def test_the_authors_counts_are_unique_and_the_same_alone(spec, cases, seed):
    layouts = [video(t, h, w) if t else Layout((Grid(h, w),)) for t, h, w, _ in cases]
    pruner = method(spec, None if "dycoke" in spec else 0.4)
    sizes = [x.tokens for x in layouts]
    spans = made_up(pruner, sizes, [max(1, int(0.4 * n)) for n in sizes], seed, layouts=layouts)
    # VidCom2: the two tokens of an image of two are equally far from their mean, and rounding decides
    check_selection(pruner, spans, alone=2 not in sizes)


@pytest.mark.parametrize("name", AT_THE_INPUT)
def test_frames_with_holes_keep_exact_counts(name):
    """An earlier method of a pipeline has left some tokens of each frame only."""
    pruner, spans = clip(name, 5, 3, 4, 13)
    tokens = spans.tokens()
    left = torch.tensor([i for i in range(60) if i % 7 and i % 5 != 2])
    whole = tokens.source.read_of.items()
    reads = {s: v[..., left] if isinstance(s, EncoderAttention) else v[:, left] for s, v in whole}
    holed = replace(
        tokens,
        features=tokens.features[:, left],
        ids=left[None],
        counts=[len(left)],
        source=Served(reads),
    )
    found = chosen(pruner, holed)[0]
    assert len(set(found)) == len(found) == 13
    assert max(found) < len(left)


# of frames of 40 tokens PruneVid's authors keep half, which alone is more in float32
FULL = [(s, t) for s in (*AT_THE_INPUT, *OFFICIAL) for t in (2, 16, 72) if t < 72 or "prunevid(official" not in s]


@pytest.mark.share(4)
@pytest.mark.parametrize(("spec", "frames"), FULL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_at_full_size(spec, dtype, frames):
    """N = 2,880 and D = 4,096: at most four times the features on top of them, however many frames there are."""
    d, n = 4096, 2880
    pruner = method(spec, 0.1)

    def prepare() -> VisualTokens:
        kinds = {EncoderAttention: (1, 16, n), PreProjector: (1, n, 1, 1024)}
        source = Served({s: torch.empty(*kinds[type(s)], dtype=dtype) for s in pruner.signals})
        tokens = tokens_of(np.zeros((n, 1), np.float32), n // 10, source, [video(frames, 4, n // frames // 4)])
        return replace(tokens, features=torch.empty(1, n, d, dtype=dtype))

    held = peak_bytes(prepare, lambda tokens: pruner.select(tokens, n // 10))
    assert 0 < held <= 4 * n * d * dtype.itemsize


@pytest.mark.parametrize("name", AT_THE_INPUT)
def test_a_token_that_is_no_number_spoils_only_itself(name):
    pruner, spans = clip(name, 4, 3, 4, 20)
    before = set(chosen(pruner, spans.tokens())[0])
    for rows in (spans.features, *(v for s, v in spans.reads.items() if isinstance(s, PreProjector))):
        rows[0][30] = float("nan")
    for signal, rows in spans.reads.items():
        if isinstance(signal, EncoderAttention):
            rows[0][:, 30] = float("nan")
    after = set(chosen(pruner, spans.tokens())[0])
    assert 30 not in after
    assert len(before & after) >= 16, "not much else changes"
    found = pruner.select(spans.tokens(), 20)
    assert name != "fastvid" or found.features.isfinite().all()


# ---------------------------------------------------------------------- in the models


def cells() -> list:
    return [pytest.param(Setting(n, 0.4), f, id=f"{n}-{f}") for n in (*NAMES, "prunevid") for f in VIDEOS]


@pytest.mark.parametrize(("setting", "family"), cells())
def test_pruned_equals_masked_on_videos(setting, family):
    pruned_equals_masked(setting, family, "video")


@pytest.mark.parametrize(("setting", "family"), cells())
def test_batch_equals_one_by_one_on_videos(setting, family):
    batch_equals_one_by_one(setting, family, "video")


@pytest.mark.parametrize(("setting", "family"), cells())
def test_a_video_waits_for_nothing(setting, family):
    run(setting, family, "clip", counts_of(family, "clip"))


# ---------------------------------------------------------------------- frames


@given(st.integers(1, 9), st.integers(1, 9))
def test_every_beginning_of_the_spread_order_is_even(rows, cols):
    turn = spread_order(rows, cols).reshape(rows, cols)
    assert sorted(turn.flatten().tolist()) == list(range(rows * cols))
    assert turn[0, 0] == 0
    if rows % 2 == cols % 2 == 0:  # a quarter is every second place of every second row
        assert (turn[::2, ::2] < rows * cols // 4).all()


def test_frames_are_found_through_holes_and_newlines():
    layout = Layout((Grid(2, 2, "frame"), Grid(2, 2, "frame", newline="end")))
    tokens = tokens_of(torch.arange(5.0)[:, None], 1, layouts=[layout])
    frames = frames_of(replace(tokens, ids=torch.tensor([[0, 3, 4, 6, 7]])))
    assert frames.frame.tolist() == [[0, 0, 1, 1, 1]]
    assert frames.place.tolist() == [[0, 3, 0, 2, 3]]
    assert frames.there[0].tolist() == [[True, False, False, True], [True, False, True, True]]
    assert frames.column[0][frames.there[0]].tolist() == [0, 1, 2, 3, 4]
    assert frames.collect(frames.spread(tokens.features)[..., 0]).tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0]]
    assert (frames.sizes, frames.places) == ([2], [4])


def test_an_image_is_one_frame():
    layout = Layout((Grid(2, 2, "base"), Grid(2, 3, "mosaic", "row")))
    tokens = tokens_of(torch.zeros(10, 1), 1, layouts=[layout])
    frames = frames_of(replace(tokens, ids=torch.tensor([[0, 1, 2, 3, 4, 5, 6, 8, 9, 10]])))
    assert frames.frame.tolist() == [[0] * 10]
    assert frames.place.tolist() == [list(range(10))]
    assert sorted(frames.turn[0].tolist()) == list(range(10))


# ---------------------------------------------------------------------- EVS


@pytest.mark.parametrize("keep", [9, 20, 35])
def test_evs_keeps_the_first_frame_and_what_changed(keep):
    pruner, spans = clip("evs", 4, 3, 3, keep)
    x = spans.features[0].view(4, 9, -1)
    change = {(t, p): 1 - cosine_similarity(x[t, p], x[t - 1, p], dim=0).item() for t in range(1, 4) for p in range(9)}
    most = sorted(change, key=lambda tp: -change[tp])[: keep - 9]
    found = chosen(pruner, spans.tokens())[0]
    assert sorted(found) == sorted([*range(9), *(9 * t + p for t, p in most)])


def test_evs_below_a_frame_samples_the_first_one_evenly():
    pruner, spans = clip("evs", 3, 4, 4, 4)
    assert sorted(chosen(pruner, spans.tokens())[0]) == [0, 2, 8, 10]
    image = made_up(pruner, [16], [4], layouts=[Layout((Grid(4, 4),))])
    assert sorted(chosen(pruner, image.tokens())[0]) == [0, 2, 8, 10]


@pytest.mark.parametrize(("keep", "count"), [(0.1, 9), (0.5, 18), (0.7, 25)])
def test_evs_counts_as_the_engine(keep, count):
    pruner, spans = clip("evs(official=True)", 4, 3, 3, keep)
    spans.budgets = [math.floor(keep * 36 + 0.5)]
    assert len(chosen(pruner, spans.tokens())[0]) == count


@pytest.mark.parametrize(("keep", "count"), [(0.1, 9), (10, 10), (35, 35)])
def test_evs_counts_as_the_engine_whatever_keep_is(keep, count):
    pruner, spans = clip("evs(official=True)", 4, 3, 3, keep)
    spans.budgets = [resolve_keep(keep, 36)]
    assert len(chosen(pruner, spans.tokens())[0]) == count


@pytest.mark.parametrize("spec", ["evs(official=True)", "dycoke(official=True)"])
def test_the_authors_counts_leave_an_image_whole(spec):
    pruner = method(spec, 0.25)
    image = made_up(pruner, [16], [4], layouts=[Layout((Grid(4, 4),))])
    assert sorted(chosen(pruner, image.tokens())[0]) == list(range(16))


# ---------------------------------------------------------------------- DyCoke


def least_alike(x: Tensor, t: int, r: int) -> list[int]:
    like = cosine_similarity(x[t], x[r], dim=-1)
    return sorted(range(len(like)), key=lambda p: (like[p].item(), p))


@pytest.mark.parametrize(("frames", "official"), [(8, False), (8, True), (7, False), (7, True), (3, True), (1, False)])
def test_dycoke_follows_its_formula(frames, official):
    p = 6
    keep = 4 * frames
    pruner, spans = clip("dycoke(official=True, ratio=0.5)" if official else "dycoke", frames, 2, 3, keep)
    spans.budgets = [keep]
    x = spans.features[0].view(frames, p, -1)
    third = [i + 2 for i in range(0, frames - 4 if official else frames - 2, 4)]
    reference = {**{t + 1: t for t in range(0, frames - 1, 2)}, **{t: t - 2 for t in third}}
    rest = keep - p * (frames - len(reference))
    expected, turn = [], 0
    for t in range(frames):
        if t not in reference:
            expected += range(p * t, p * t + p) if official or rest >= 0 else []
            continue
        share = 3 if official else rest // len(reference) + (turn < rest % len(reference))
        expected += [p * t + i for i in least_alike(x, t, reference[t])[:share]]
        turn += 1
    found = chosen(pruner, spans.tokens())[0]
    if frames == 1:
        assert sorted(found) == sorted(np.argsort(spread_order(2, 3))[:4].tolist()), "one frame: sampled evenly"
    else:
        assert found == expected


def test_dycoke_shares_a_small_budget_over_the_uncompared_frames():
    pruner, spans = clip("dycoke", 8, 4, 4, 8)
    assert sorted(chosen(pruner, spans.tokens())[0]) == [0, 2, 8, 10, 64, 66, 72, 74]


# ---------------------------------------------------------------------- VidCom2


@pytest.mark.parametrize(("frames", "keep"), [(5, 40), (3, 7), (1, 5), (4, 60)])
def test_vidcom2_follows_its_formula(frames, keep):
    pruner, spans = clip("vidcom2", frames, 4, 4, keep, seed=3, noise=1.0)
    spans.features[0][:16] *= 1.5
    x = spans.features[0].double()
    y = normalize(x[:, x.var(0).argsort()[:3]], dim=-1).view(frames, 16, 3)
    near = [
        sum(torch.exp(-((y - c) ** 2).sum(-1) / (2 * a)) for a in (0.125, 0.25, 0.5, 1, 2))
        for c in (y.mean((0, 1)), y.mean(1, keepdim=True))
    ]
    share = torch.softmax(-near[0].mean(1) / 0.01, 0)
    weight = 1 + share - share.mean()
    scores = pruner.scores(spans.tokens(), frames_of(spans.tokens()))
    assert torch.allclose(scores.weight[0].double(), weight, atol=1e-4)
    assert torch.allclose((scores.video + scores.frame)[0].double(), (near[0] + near[1]).flatten(), atol=1e-5)
    # seats by Webster's method, one after the other
    seats = [0] * frames
    for _ in range(keep):
        open_ = [t for t in range(frames) if seats[t] < 16]
        seats[min(open_, key=lambda t: (seats[t] + 0.5) / weight[t].item())] += 1
    expected = [16 * t + p for t in range(frames) for p in (near[0] + near[1])[t].argsort()[: seats[t]].tolist()]
    assert sorted(chosen(pruner, spans.tokens())[0]) == sorted(expected)


def test_vidcom2_gives_a_distinctive_frame_more():
    pruner, spans = clip("vidcom2", 4, 4, 4, 16, seed=1, noise=0.05)
    spans.features[0][32:48] = torch.randn(16, 6, generator=torch.Generator().manual_seed(9))
    kept = torch.tensor(chosen(pruner, spans.tokens())[0]) // 16
    counts = kept.bincount(minlength=4).tolist()
    assert counts[2] > 4 > max(counts[0], counts[1], counts[3])


# ---------------------------------------------------------------------- FastVID


def slow_fastvid(pruner, spans: Spans, frames: int, places: int) -> dict[int, np.ndarray | None]:
    """Kept tokens by index, with the new vector of those that were merged."""
    attention, read = (v[0].double() for v in spans.reads.values())
    a, x = attention.mean(0).view(frames, places), spans.features[0].double().view(frames, places, -1)
    whole = read.mean(1).view(frames, places, -1).mean(1)
    like = cosine_similarity(whole[1:], whole[:-1], dim=-1)
    low = sorted(range(frames - 1), key=lambda i: like[i].item())[: pruner.segments - 1]
    cuts = [0, *sorted(i + 1 for i in range(frames - 1) if i in low or like[i] < pruner.threshold), frames]
    budget = spans.budgets[0]
    share = [budget // frames + (t < budget % frames) for t in range(frames)]
    salient = [set(a[t].argsort(descending=True)[: m - int(m * pruner.context)].tolist()) for t, m in enumerate(share)]
    out: dict[int, np.ndarray | None] = {t * places + i: None for t in range(frames) for i in salient[t]}
    for first, end in pairwise(cuts):
        context = sum(int(share[t] * pruner.context) for t in range(first, end))
        holders = list(range(end - 1, first - 1, -pruner.every))
        anchors = []
        for i, t in enumerate(holders):
            free = [p for p in range(places) if p not in salient[t]]
            d = torch.cdist(x[t, free], x[t, free]) / x.shape[-1] ** 0.5
            density = torch.exp(-(d.sort(1).values[:, :4] ** 2).mean(1))
            denser = [[q for q in range(len(free)) if density[q] > density[j]] for j in range(len(free))]
            far = [d[j, q].min() if q else d.max() for j, q in enumerate(denser)]
            peak = sorted(range(len(free)), key=lambda j: -(density[j] * far[j]).item())
            anchors += [(t, free[j]) for j in peak[: context // len(holders) + (i < context % len(holders))]]
        groups: dict[tuple[int, int], list[Tensor]] = {anchor: [] for anchor in anchors}
        for t in range(first, end):
            for p in range(places):
                if anchors and p not in salient[t] and (t, p) not in anchors:
                    groups[max(anchors, key=lambda q: cosine_similarity(x[t, p], x[q], dim=0).item())].append(x[t, p])
        for (t, p), joined in groups.items():
            mean = torch.stack([x[t, p], *joined]).mean(0)
            w = max(1 / (len(joined) + 1), pruner.weight)
            out[t * places + p] = (w * x[t, p] + (1 - w) * mean).numpy()
    return out


@pytest.mark.parametrize(
    ("spec", "frames", "keep"),
    [
        ("fastvid(segments=3)", 6, 33),
        ("fastvid(segments=1, threshold=-1, every=2)", 7, 29),
        ("fastvid(segments=2, threshold=-1, context=0.6, weight=0)", 9, 50),
        ("fastvid", 1, 6),
    ],
)
def test_fastvid_follows_its_formula(spec, frames, keep):
    pruner, spans = clip(spec, frames, 4, 4, keep, seed=frames)
    expected = slow_fastvid(pruner, spans, frames, 16)
    found = pruner.select(spans.tokens(), keep)
    assert found.index[0].tolist() == sorted(expected)
    assert sum(v is not None for v in expected.values()) > 1
    for column, vector in zip(found.index[0].tolist(), found.features[0], strict=True):
        wanted = spans.features[0][column] if expected[column] is None else expected[column]
        np.testing.assert_allclose(vector, wanted, atol=1e-5)


@pytest.mark.parametrize("places", [9, 16])
def test_fastvid_looks_at_some_rows_and_channels_at_a_time(places, monkeypatch):
    pruner, spans = clip("fastvid", 3, 1, places, 12)
    whole = pruner.select(spans.tokens(), 12)
    monkeypatch.setattr(fastvid, "BLOCK", 4)
    monkeypatch.setattr(clustering, "ROWS", (4, 4))
    monkeypatch.setattr(merging, "CHANNELS", 4)
    found = pruner.select(spans.tokens(), 12)
    assert found.index.tolist() == whole.index.tolist()
    assert torch.allclose(found.features, whole.features, atol=1e-5)


def test_fastvid_gives_what_a_frame_is_too_small_for_to_attended_tokens():
    pruner, spans = clip("fastvid(segments=1, threshold=-1, every=8)", 6, 2, 2, 22)
    found = sorted(chosen(pruner, spans.tokens())[0])
    attention = spans.reads[pruner.signals[0]][0].mean(0)
    salient = {t: set((attention[4 * t : 4 * t + 4].argsort(descending=True) + 4 * t)[:3].tolist()) for t in range(6)}
    assert all(salient[t] <= set(found) for t in range(4))
    assert set(range(20, 24)) <= set(found), "the anchor frame whole"
    missing = set(range(24)) - set(found)
    others = set(range(20)) - missing - set().union(*salient.values())
    assert not others or max(attention[list(missing)]) <= min(attention[list(others)])


def test_fastvid_official_counts():
    pruner, spans = clip("fastvid(official=True)", 8, 4, 4, 0.25)
    spans.budgets = [32]
    assert len(chosen(pruner, spans.tokens())[0]) == 8 * 4
    pruner.keep = 0.3
    assert len(chosen(pruner, spans.tokens())[0]) == 8 * 4, "int(16 * 0.3) of each frame"


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("dycoke(ratio=1.5, keep=4)", "ratio=1.5"),
        ("fastvid(segments=0, keep=4)", "segments=0"),
        ("fastvid(segments=2.5, keep=4)", "segments=2.5"),
        ("fastvid(threshold=2, keep=4)", "threshold=2"),
        ("fastvid(every=0, keep=4)", "every=0"),
        ("fastvid(context=1.5, keep=4)", "context=1.5"),
        ("fastvid(weight=-1, keep=4)", "weight=-1"),
    ],
)
def test_bad_parameters_are_named(spec, match):
    with pytest.raises((ValueError, TypeError), match=match):
        vtc.parse(spec)
