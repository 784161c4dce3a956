"""GlobalCom2 and correlation-guided compression: their formulas written out, and what crops share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden_cases.globalcom2 import sequence
from golden_support import Served, tokens_of
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from layout_tools import run, stub
from made_up import layout_of, made_up
from properties import check_selection, chosen
from torch import Tensor, nn
from transformers import LlavaNextImageProcessor
from vision_tools import ready
from zoo import prompt, tiny
from zoo.models import PINPOINTS

import vtc
from vtc.pruners.globalcom2 import CLASS_TOKEN, LOOKS, _seen, regions
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import EncoderAttention

pytestmark = pytest.mark.usefixtures("no_grad")
PADDED = Layout((Grid(6, 6, "base"), Grid(9, 12, "mosaic", "row", ((5,), (6,)))))
LAYOUTS = {
    "whole": Layout((Grid(6, 6, "base"), Grid(12, 12, "mosaic", "row", ((6,), (6,))))),
    "padded": PADDED,
    "wide": Layout((Grid(4, 4, "base"), Grid(4, 12, "mosaic", cuts=((), (4, 8))))),
    "thin": Layout((Grid(5, 5, "base"), Grid(3, 10, "mosaic", cuts=((-1,), (5,))))),  # a row of crops is only padding
    "image": Layout((Grid(5, 7),)),
    "frames": Layout((Grid(3, 4, "frame"),) * 3),
}


def share_out(quotas: list[float], orders: list[list[int]], budget: int) -> set[int]:
    """The first tokens of each order, `budget` in sum: one by one of the part that is farthest below its quota.

    Between equal ones it is the token with the lowest index; what only rounding decides is no case.
    """
    given, found = [0] * len(quotas), set()
    for _ in range(budget):
        left = [
            (g - q, int(o[g]), i) for i, (q, g, o) in enumerate(zip(quotas, given, orders, strict=True)) if g < len(o)
        ]
        most, token, part = min(left)
        if any(0 < other - most < 1e-5 for other, *_ in left):
            reject()
        found.add(token)
        given[part] += 1
    return found


def crop_of(cuts: tuple[int, ...], at: float) -> int:
    """In which crop a row (or column) of the mosaic lies."""
    return sum(at >= cut for cut in cuts)


def bilinear(view: np.ndarray, y: float, x: float) -> float:
    """The value at a place in units of cells, whose centres are at halves; constant beyond the outer centres."""
    y, x = (min(max(p - 0.5, 0), n - 1) for p, n in zip((y, x), view.shape, strict=True))
    i, j = min(int(y), view.shape[0] - 1), min(int(x), view.shape[1] - 1)
    a, b = y - i, x - j
    low, right = min(i + 1, view.shape[0] - 1), min(j + 1, view.shape[1] - 1)
    top = (1 - b) * view[i, j] + b * view[i, right]
    return (1 - a) * top + a * ((1 - b) * view[low, j] + b * view[low, right])


def globalcom2(layout: Layout, a: np.ndarray, budget: int, tau: float = 10, alpha: float = 0.5) -> set[int]:
    """What the docstring says, token by token, over the content of `layout`; `a` are the scores of all its tokens."""
    base, mosaic = layout.grids
    view = a[: base.rows * base.cols].reshape(base.rows, base.cols)
    down, across = (len(c) + 1 for c in mosaic.cuts)
    crops: list[list[tuple[int, float]]] = [[] for _ in range(down * across)]
    for token, (grid, row, col) in enumerate(layout.array):
        if grid == 1 and col >= 0:
            place = (row + 0.5) / mosaic.rows * base.rows, (col + 0.5) / mosaic.cols * base.cols
            where = crop_of(mosaic.cuts[0], row) * across + crop_of(mosaic.cuts[1], col)
            crops[where].append((token, bilinear(view, *place)))
    sums = [0.0] * len(crops)
    for row in range(base.rows):
        for col in range(base.cols):
            r = crop_of(mosaic.cuts[0], (row + 0.5) / base.rows * mosaic.rows)
            c = crop_of(mosaic.cuts[1], (col + 0.5) / base.cols * mosaic.cols)
            sums[r * across + c] += view[row, col]
    real = [i for i, crop in enumerate(crops) if crop]
    weight = np.array([math.exp((sums[i] - max(sums[j] for j in real)) / tau) for i in real])
    weight /= weight.sum()
    n = base.rows * base.cols + sum(map(len, crops))
    ratio = budget / n
    quota = {i: len(crops[i]) * min(1, ratio * (1 + w - weight.mean())) for i, w in zip(real, weight, strict=True)}
    first = ratio * base.rows * base.cols
    scale = (budget - first) / sum(quota.values())
    parts = [list(range(base.rows * base.cols)), *([t for t, _ in crop] for crop in crops)]
    scores = [a[parts[0]]]
    for crop in crops:
        own, seen = a[[t for t, _ in crop]], np.array([s for _, s in crop])
        size = max(np.linalg.norm(own), 1e-12), max(np.linalg.norm(seen), 1e-12)
        both = (1 - alpha) * own / size[0] + alpha * seen / size[1]
        scores.append(np.round(both * 2.0**40) / 2.0**40)  # equal but for float64's rounding is equal
    shares = [first, *(quota.get(i, 0) * scale for i in range(len(crops)))]
    orders = [[part[j] for j in np.argsort(-s, kind="stable")] for part, s in zip(parts, scores, strict=True)]
    return share_out(shares, orders, budget)


def content(layout: Layout) -> Tensor:
    """Ids of a layout's tokens without newlines."""
    return (~layout.newline).nonzero()[:, 0]


def asked(layout: Layout, a: Tensor, budget: int) -> vtc.VisualTokens:
    """The tokens of one span with the class token's logits `[H, n]`, newlines left out as the host does."""
    ids = content(layout)
    made = tokens_of(np.zeros((len(ids), 1), np.float32), budget, Served({LOOKS: a[None, :, ids]}), [layout])
    made.ids = ids[None]
    return made


@pytest.mark.parametrize("name", ["whole", "padded", "wide", "thin"])
@given(st.integers(0, 9999), st.floats(0.05, 0.95), st.sampled_from([0.3, 2.0, 10.0]), st.sampled_from([0.0, 0.5, 1.0]))
@example(469, 0.375, 10.0, 1.0)  # resized scores that are equal at a border
@settings(max_examples=25)
def test_globalcom2_is_its_formula(name: str, seed: int, keep: float, tau: float, alpha: float) -> None:
    layout = LAYOUTS[name]
    a = 2 * torch.randn(3, layout.tokens, generator=torch.Generator().manual_seed(seed))
    budget = max(1, int(keep * layout.content))
    pruner = vtc.parse("globalcom2", keep=budget, tau=tau, alpha=alpha)[0]
    tokens = asked(layout, a, budget)
    kept = {int(tokens.ids[0, c]) for c in chosen(pruner, tokens)[0]}
    assert kept == globalcom2(layout, a.mean(0).double().numpy(), budget, tau, alpha)


def test_globalcom2_on_what_is_not_cropped() -> None:
    """The highest logits of an image, of each frame as many."""
    g = torch.Generator().manual_seed(1)
    a = torch.randn(2, 35, generator=g)
    pruner = vtc.parse("globalcom2", keep=9)[0]
    assert chosen(pruner, asked(LAYOUTS["image"], a, 9))[0] == sorted(a.mean(0).topk(9).indices.tolist())
    a = torch.randn(2, 36, generator=g)
    [kept] = chosen(pruner, asked(LAYOUTS["frames"], a, 9))
    want = a.mean(0).view(3, 12).topk(3).indices + torch.arange(0, 36, 12)[:, None]
    assert kept == sorted(want.flatten().tolist())
    everything = vtc.parse("globalcom2", keep=9, official=True)[0].select(asked(LAYOUTS["image"], a[:, :35], 9), 9)
    assert everything.tolist() == [list(range(35))], "the authors leave such pictures alone"


def counts_of(layout: Layout, a: Tensor, budget: int, **params: float) -> list[int]:
    tokens = asked(layout, a, budget)
    [kept] = chosen(vtc.parse("globalcom2", keep=budget, **params)[0], tokens)
    parts = layout.parts()[tokens.ids[0, kept].numpy()]
    return np.bincount(parts, minlength=int(layout.parts().max()) + 1).tolist()


@pytest.mark.parametrize("crop", range(4))
def test_the_crop_that_the_thumbnail_looks_at_keeps_more(crop: int) -> None:
    layout, budget = LAYOUTS["whole"], 72
    a = torch.zeros(2, layout.tokens)
    region = torch.from_numpy(regions(layout, False)) == crop + 1
    assert region.sum() == 9
    a[:, region] = 3.0
    base, *crops = counts_of(layout, a, budget)
    assert base == round(36 * budget / 180)
    assert crops[crop] == max(crops) > 1.5 * sorted(crops)[-2]
    assert sum(crops) == budget - base
    # between R (1 - 1/n) and R (2 - 1/n), the paper's bounds
    assert crops[crop] <= 36 * 0.4 * 1.75 + 1
    assert min(crops) >= 36 * 0.4 * 0.75 - 1
    flat = counts_of(layout, a, budget, tau=1e6)[1:]
    assert max(flat) - min(flat) <= 1


def picture_of_places(height: int, width: int) -> np.ndarray:
    """`[h, w, 3]` uint8: how far down and to the right each pixel is, and 255."""
    y = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    x = np.broadcast_to(np.linspace(0, 255, width)[None], (height, width))
    return np.stack([y, x, np.full_like(y, 255)], 2).astype(np.uint8)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize("size", [(280, 350), (392, 210), (231, 357), (350, 290)], ids=str)
def test_the_thumbnail_is_seen_at_the_right_places_of_padded_pictures(name: str, size: tuple[int, int]) -> None:
    """Pixels that hold their own place go through the stock image processor, cropping and unpadding."""
    model = ready(name)
    stub(model, 1 if name == "llava_next" else 0)
    model.base_model.multi_modal_projector = nn.Identity()
    processor = LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=PINPOINTS,
        do_center_crop=False, image_mean=[0, 0, 0], image_std=[1, 1, 1], size_divisor=1,
    )  # fmt: skip
    processor.size = {"height": 28, "width": 28}
    made = processor(picture_of_places(*size), return_tensors="pt")
    _, _, [layout], [places] = run(model, {k: made[k] for k in ("pixel_values", "image_sizes")})
    base, mosaic = layout.grids
    sides = [(len(c) + 1) * 4 for c in mosaic.cuts]
    assert (mosaic.rows, mosaic.cols) != tuple(sides), "padding was cut off"
    score = 5 * places[:, 0] - 3 * places[:, 1] + 1  # of a place in the picture, whoever shows it
    tokens = asked(layout, score[None], 9)
    own = score[tokens.ids]
    seen = _seen(tokens, own, [True])[0]
    place = layout.array[tokens.ids[0].numpy()]
    scale = np.array([mosaic.rows / base.rows, mosaic.cols / base.cols])
    # next to the border, the thumbnail's outer half cell, there is nothing to interpolate
    inner = (place[:, 0] == 1) & (place[:, 1:] + 0.5 >= scale / 2 - 1e-6).all(1)
    inner &= (place[:, 1:] + 0.5 <= np.array([mosaic.rows, mosaic.cols]) - scale / 2 + 1e-6).all(1)
    assert inner.sum() >= 12
    spread = float(score.max() - score.min())
    assert (seen - own[0])[inner].abs().max() < 0.03 * spread
    # a view that took the padding for picture would be far off
    shifted = _seen(tokens, own, [True])[0].roll(2)
    assert (shifted - own[0])[inner].abs().max() > 0.06 * spread


def test_kept_tokens_of_a_padded_picture_stay_in_reading_order() -> None:
    """The authors write the j-th valid token of a crop to the crop's j-th cell, padding or not; here nothing moves."""
    side, left = 6, 2
    cells = np.arange(4 * 36).reshape(2, 2, side, side).transpose(0, 2, 1, 3).reshape(12, 12)
    for padding in (0, left):
        seen = cells.copy()
        seen[:, :padding] = seen[:, 12 - padding :] = -1
        inner = cells[:, padding : 12 - padding]
        cuts = ((6,), (6 - padding,))
        layout = Layout((Grid(side, side, "base"), Grid(12, 12 - 2 * padding, "mosaic", "row", cuts)))
        a = torch.randn(1, layout.tokens, generator=torch.Generator().manual_seed(3))
        tokens = asked(layout, a, 40)
        [kept] = chosen(vtc.parse("globalcom2", keep=40)[0], tokens)
        place = layout.array[tokens.ids[0, kept].numpy()]
        ours = [int(inner[row, col]) for grid, row, col in place if grid == 1]
        assert ours == [int(c) for c in inner.flatten() if c in ours], "reading order"
        theirs = [c for c in sequence(ours, seen, side) if c >= 0]
        assert sorted(theirs) == sorted(ours)
        assert (theirs == ours) == (padding == 0)


def test_which_scores_are_read() -> None:
    g = torch.Generator().manual_seed(0)
    x, one = torch.randn(12, 5, generator=g), torch.randn(1, 1, 12, generator=g)
    unlike = -torch.nn.functional.cosine_similarity(x, x.mean(0, keepdim=True))
    for rows, spec, want in (
        (one, "globalcom2", one[0, 0]),  # a tower whose layers have one head
        (torch.zeros(1, 1, 12), "globalcom2", unlike),  # no class token
        (one, "globalcom2(score=cosine)", unlike),
        (one, "globalcom2(score=attention)", one[0, 0]),
    ):
        source = Served({LOOKS: rows, CLASS_TOKEN: rows})
        [kept] = chosen(vtc.parse(spec, keep=4)[0], tokens_of(x, 4, source))
        assert kept == sorted(want.topk(4).indices.tolist())
    with pytest.raises(NotImplementedError, match="class token"):
        vtc.compress(tiny("llava_onevision"), "globalcom2(score=attention)", keep=0.5)
    for bad in ("tau=0", "alpha=1.5", "score=best"):
        with pytest.raises(ValueError, match=f"globalcom2.{bad.split('=')[0]}"):
            vtc.parse(f"globalcom2({bad})")


# ---------------------------------------------------------------------- correlation-guided compression


def tokencorr(
    part: np.ndarray, keys: np.ndarray, deep: np.ndarray, shallow: np.ndarray, tau: float, budget: int | None
) -> set[int]:
    """What the docstring says, crop by crop; without a budget as many as the crops' density says."""
    orders, fresh, outside = [], [], []
    for p in range(part.max() + 1):
        own = np.flatnonzero(part == p)
        if not len(own):
            continue
        unit = keys[own] / np.linalg.norm(keys[own], axis=1, keepdims=True)
        alike = (unit @ unit.T > tau) & ~np.eye(len(own), dtype=bool)
        redundant = alike.sum(1) > 0.1 * len(own)
        fresh.append(int((~redundant).sum()))
        first, third = np.percentile(deep[own], [25, 75])
        wide = [i for i in np.argsort(-deep[own], kind="stable") if deep[own][i] > third + 1.5 * (third - first)]
        outside.append(len(wide))
        rest = [i for i in np.argsort(-shallow[own], kind="stable") if i not in wide]
        orders.append([own[i] for i in [*wide, *rest]])
    if budget is not None:
        return share_out([f * budget / max(sum(fresh), 1) for f in fresh], orders, budget)
    counts = [max(f, w) for f, w in zip(fresh, outside, strict=True)]
    return {int(t) for order, k in zip(orders, counts, strict=True) for t in order[:k]}


@pytest.mark.parametrize("name", LAYOUTS)
@given(st.integers(0, 9999), st.floats(0.05, 0.95), st.booleans(), st.sampled_from([0.3, 0.8]))
@settings(max_examples=15)
def test_tokencorr_is_its_formula(name: str, seed: int, keep: float, adaptive: bool, tau: float) -> None:
    layout = LAYOUTS[name]
    ids, g = content(layout), torch.Generator().manual_seed(seed)
    n = len(ids)
    centres = torch.randn(4, 6, generator=g)
    keys = centres[torch.randint(4, (n,), generator=g)] + torch.rand(n, 1, generator=g) * torch.randn(n, 6, generator=g)
    deep, shallow = (torch.randn(2, n, generator=g).mul(s).softmax(1) for s in (3, 1))
    budget = max(1, int(keep * n))
    pruner = vtc.parse("tokencorr", keep=None if adaptive else budget, adaptive=adaptive, tau=tau, limit=0.1)[0]
    source = Served(dict(zip(pruner.signals, (keys[None, :, None], deep[None], shallow[None]), strict=True)))
    tokens = tokens_of(np.zeros((n, 1), np.float32), n - 1 if adaptive else budget, source, [layout])
    tokens.ids = ids[None]
    part = layout.parts()[ids.numpy()]
    looks = deep.mean(0).numpy(), shallow.mean(0).numpy()
    want = tokencorr(part, keys.double().numpy(), *looks, tau, None if adaptive else budget)
    [kept] = chosen(pruner, tokens)
    assert set(kept) == want if want else len(kept) == 1


def test_a_crop_that_repeats_itself_keeps_less() -> None:
    layout = LAYOUTS["whole"]
    ids, g = content(layout), torch.Generator().manual_seed(0)
    part = torch.from_numpy(layout.parts())[ids]
    keys = torch.randn(len(ids), 32, generator=g)
    keys[(part == 3) & (torch.arange(len(ids)) % 4 > 0)] = 1.0  # three quarters of this crop
    deep = shallow = torch.rand(1, 1, len(ids), generator=g)
    for adaptive in (False, True):
        pruner = vtc.parse("tokencorr", keep=None if adaptive else 90, adaptive=adaptive)[0]
        source = Served(dict(zip(pruner.signals, (keys[None, :, None], deep, shallow), strict=True)))
        tokens = tokens_of(np.zeros((len(ids), 1), np.float32), 90, source, [layout])
        tokens.ids = ids[None]
        [kept] = chosen(pruner, tokens)
        counts = torch.bincount(part[kept], minlength=5).tolist()
        if adaptive:
            assert counts == [36, 36, 36, int(((part == 3) & (torch.arange(len(ids)) % 4 == 0)).sum()), 36]
        else:
            assert sum(counts) == 90
            assert counts[3] < 0.4 * min(counts[:3])
            assert max(counts[:3]) - min(counts[:3]) <= 1


@pytest.mark.parametrize("spec", ["globalcom2", "globalcom2(score=cosine, tau=0.01)", "tokencorr(tau=0.2, limit=0.1)"])
def test_several_pictures_share_no_budget(spec: str) -> None:
    """Rows of different layouts: each keeps its own number and what it keeps alone."""
    pruner = vtc.parse(spec, keep=0.3)[0]
    [stop] = pruner.stops(6)
    layouts = [LAYOUTS["wide"], LAYOUTS["frames"], layout_of("crops", 2, 3), LAYOUTS["image"]]
    kept = check_selection(pruner, made_up(pruner, stop, layouts, seed=4))
    assert [len(k) for k in kept] == [max(1, int(0.3 * layout.tokens + 0.5)) for layout in layouts]


# ---------------------------------------------------------------------- crops that are spans of their own


@pytest.mark.parametrize(
    ("family", "spec"),
    [(f, "globalcom2(tau=0.01)") for f in ("internvl", "idefics3", "smolvlm")]
    + [("internvl", "tokencorr(tau=0.3, limit=0.1)"), ("idefics3", "tokencorr"), ("smolvlm", "tokencorr")],
)
def test_crops_that_are_spans_share_the_pictures_budget(family: str, spec: str) -> None:
    given = prompt(family, "sizes")
    with vtc.compressed(tiny(family), spec, keep=0.5) as model:
        model(**given.inputs)
        report = model.vtc.report
    kept = [len(k) for k in report.steps[0].kept]
    alone = [max(1, int(0.5 * len(s.columns) + 0.5)) for s in report.spans]
    assert report.pictures
    for spans in report.pictures:
        assert sum(kept[s] for s in spans) == sum(alone[s] for s in spans)
    if spec.startswith("globalcom2"):
        assert all(kept[spans[0]] == alone[spans[0]] for spans in report.pictures), "R of the thumbnail"
    assert any(kept[s] != alone[s] for spans in report.pictures for s in spans), "crops differ"
    joined = {s for spans in report.pictures for s in spans}
    assert all(kept[s] == alone[s] for s in range(len(kept)) if s not in joined)


@pytest.mark.parametrize("family", ["internvl", "idefics3"])
def test_globalcom2_of_a_model_is_the_formula_on_its_attention(family: str) -> None:
    """What the thumbnail's scores command, from scores read with a method that looks at each span alone."""
    seen: dict[str, list[Tensor]] = {}

    class Reader(vtc.ScorePruner):
        name = "reader"
        signals = (LOOKS, EncoderAttention())

        def score(self, tokens: vtc.VisualTokens) -> Tensor:
            seen["logits"], seen["features"] = list(tokens.read(LOOKS).mean(1)), list(tokens.features)
            return tokens.features.norm(dim=-1)

    given, model = prompt(family, "one").inputs, ready(family)
    with vtc.compressed(model, Reader(keep=0.5)):
        model(**given)
    x = seen["features"]
    unlike = [-torch.nn.functional.cosine_similarity(f, f.mean(0, keepdim=True)) for f in x]
    left, right, whole = seen["logits"] if family == "internvl" else unlike  # the thumbnail is fed last
    side = math.isqrt(len(whole))
    mosaic = torch.cat([left.view(side, side), right.view(side, side)], 1)
    layout = Layout((Grid(side, side, "base"), Grid(side, 2 * side, "mosaic", cuts=((), (side,)))))
    a = torch.cat([whole, mosaic.flatten()]).double().numpy()
    budget = 3 * max(1, int(0.5 * side**2 + 0.5))
    want = globalcom2(layout, a, budget, tau=0.05)
    with vtc.compressed(model, "globalcom2", keep=0.5, tau=0.05):
        model(**given)
        kept = [k.tolist() for k in model.vtc.report.steps[0].kept]
    found = {*kept[2]}
    for crop in (0, 1):
        found |= {side**2 + i // side * 2 * side + crop * side + i % side for i in kept[crop]}
    assert found == want
