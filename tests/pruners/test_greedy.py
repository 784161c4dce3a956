"""The greedy primitives against their formulas written out, and what all of them promise."""

from __future__ import annotations

import contextlib
from unittest import mock

import numpy as np
import pytest
import torch
from greedy_tools import cosines, slow_cover, slow_dpp, slow_farthest, slow_max_sum, slow_mmr
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import peak_bytes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from vtc.pruners.primitives import greedy
from vtc.pruners.primitives.greedy import (
    dpp_map,
    facility_location,
    farthest_point,
    finite_range,
    host,
    isolation,
    loop,
    max_sum,
    mmr,
)
from vtc.pruners.primitives.greedy.rows import Rows

pytestmark = pytest.mark.usefixtures("no_grad")


sizes = st.tuples(st.integers(1, 24), st.integers(3, 40), st.integers(0, 10_000), st.data())


def drawn(n, d, seed):
    g = np.random.default_rng(seed)
    return g.standard_normal((n, d)), g.uniform(0.1, 1, n)


def batch(*arrays):
    return [torch.from_numpy(a).float()[None] for a in arrays]


@given(sizes)
@settings(max_examples=60)
def test_the_primitives_are_their_formulas(case):
    n, d, seed, data = case
    x, w = drawn(n, d, seed)
    k = data.draw(st.integers(1, n))
    parallel = data.draw(st.integers(1, 4))
    a, b = batch(x, w)
    assert farthest_point(a, k)[0].tolist() == slow_farthest(x, k)
    assert farthest_point(a, k, weight=b)[0].tolist() == slow_farthest(x, k, w)
    assert farthest_point(a, k, start=b)[0].tolist() == slow_farthest(x, k, start=w)
    assert max_sum(a, k, b)[0].tolist() == slow_max_sum(x, k, w)
    assert mmr(a, b, k, 0.7, None, parallel)[0].tolist() == slow_mmr(x, w, k, 0.7, parallel)
    assert facility_location(a, k, None, b)[0].tolist() == slow_cover(cosines(x), k, w)
    k = min(k, d - 1)  # beyond the rank only rounding decides
    assert dpp_map(a, k, None, b)[0].tolist() == slow_dpp(x, k, w)


PRIMITIVES = {
    "farthest_point": lambda x, w, k, valid: farthest_point(x, k, valid),
    "weighted": lambda x, w, k, valid: farthest_point(x, k, valid, weight=w),
    "kcenter": lambda x, w, k, valid: farthest_point(x, k, valid, start=w),
    "max_sum": lambda x, w, k, valid: max_sum(x, k, w, valid),
    "mmr": lambda x, w, k, valid: mmr(x, w, k, 0.5, valid),
    "mmr3": lambda x, w, k, valid: mmr(x, w, k, 0.5, valid, 3),
    "dpp_map": lambda x, w, k, valid: dpp_map(x, k, valid, w),
    "facility_location": lambda x, w, k, valid: facility_location(x, k, valid, w),
}
primitives = pytest.mark.parametrize("choose", PRIMITIVES.values(), ids=list(PRIMITIVES))


@primitives
@pytest.mark.parametrize("d", [4, 64])  # below N a column a step, above it the whole matrix
def test_a_smaller_k_is_a_prefix_and_padding_is_never_chosen(choose, d):
    x, w = torch.randn(3, 20, d), torch.rand(3, 20)
    valid = torch.arange(20) < torch.tensor([20, 13, 1])[:, None]
    all_of_them = choose(x, w, 20, valid)
    for row, n in enumerate((20, 13, 1)):
        assert sorted(all_of_them[row, :n].tolist()) == list(range(n))
        for k in (1, n // 2, n):
            if k:
                alone = choose(x[row : row + 1, :n], w[row : row + 1, :n], k, None)
                assert alone[0].tolist() == all_of_them[row, :k].tolist()


@primitives
@given(st.integers(1, 12), st.integers(0, 999), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
@settings(max_examples=30)
def test_duplicates_are_never_chosen_twice(choose, n, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-1, 2, (2, n, 2), generator=generator).to(dtype)  # many equal, some zero
    w = torch.randint(0, 2, (2, n), generator=generator).float()
    for row in choose(x, w, n, None).tolist():
        assert sorted(row) == list(range(n))


@primitives
def test_equal_tokens_are_taken_by_index(choose):
    x, w = torch.ones(1, 9, 4), torch.ones(1, 9)
    assert choose(x, w, 9, None)[0].tolist() == list(range(9))


@primitives
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_comes_last_and_moves_nobody(choose, bad):
    g = torch.Generator().manual_seed(0)
    # wider than there are tokens: of those that the chosen ones span, rounding chooses
    x, w = torch.randn(1, 12, 16, generator=g), torch.rand(1, 12, generator=g)
    x[0, 3, 2] = x[0, 7, 0] = bad
    good = [i for i in range(12) if i not in (3, 7)]
    order = choose(x, w, 12, None)[0].tolist()
    assert order[10:] == [3, 7]
    clean = choose(x[:, good], w[:, good], 10, None)[0].tolist()
    if choose is not PRIMITIVES["mmr3"]:  # the last of its rounds of three is filled up
        assert order[:10] == [good[i] for i in clean]
    worse = w.clone()
    worse[0, 5] = bad
    if choose is not PRIMITIVES["farthest_point"]:
        assert choose(torch.randn(1, 12, 5), worse, 12, None)[0].tolist()[0] != 5


@pytest.mark.share(4)
@primitives
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "d", "k", "times"), [(2880, 4096, 370, 3), (288, 410, 280, 4)], ids=["full size", "nearly all"]
)
def test_k_steps_hold_few_times_the_features(choose, dtype, n, d, k, times):
    held = peak_bytes(
        lambda: (torch.empty(1, n, d, dtype=dtype), torch.empty(1, n)), lambda given: choose(*given, k, None)
    )
    assert n * d * 4 <= held <= times * n * d * dtype.itemsize


SIZES = ("ISOLATION", "SMALL")  # of pictures that are not chosen lazily


def made_up(n, d, kind, dtype, seed):
    """Features `[2, n, d]`, scores and which are valid: noise, noise with copies, or few values, which often tie."""
    g = torch.Generator().manual_seed(seed)
    x, w = torch.randn(2, n, d, generator=g), torch.rand(2, n, generator=g)
    valid = torch.rand(2, n, generator=g) < 0.8
    if kind == "copies":
        x, w = x[:, torch.randint(0, max(1, n // 3), (n,), generator=g)], (w * 4).round() / 4
    if kind == "axes":  # cosines are -1, 0 and 1 in any order of summing
        x = (
            torch.zeros(2, n, d).scatter_(2, torch.randint(0, d, (2, n, 1), generator=g), 1)
            * w.sub(0.5).sign()[..., None]
        )
        w = (w * 4).round() / 4
    if kind == "broken":
        x[0, torch.randint(0, n, (max(1, n // 6),), generator=g), 0] = float("nan")
        w[1, torch.randint(0, n, (max(1, n // 6),), generator=g)] = float("inf")
    valid[:, 0] = True
    return x.to(dtype), w, valid


@primitives
@pytest.mark.parametrize("kind", ["noise", "copies", "axes", "broken"])
@given(st.data())
@settings(max_examples=5)
def test_both_engines_choose_the_same(choose, kind, data):
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    n, d = data.draw(st.integers(1, 80)), data.draw(st.integers(3, 30))
    x, w, valid = made_up(n, d, kind, dtype, data.draw(st.integers(0, 999)))
    k = data.draw(st.integers(1, n))
    if choose is PRIMITIVES["dpp_map"]:
        k = min(k, d - 1)  # beyond the rank only rounding decides
    parts = [mock.patch.object(loop, "POOL", data.draw(st.sampled_from([(2, 2), (8, 8), (64, 192)])))]
    if data.draw(st.booleans(), label="lazy"):
        parts += [mock.patch.object(host, name, 0) for name in SIZES]
    parts += [mock.patch.object(isolation, name, 3) for name in ("PIVOTS", "PROMISING", "BLOCK")]
    with contextlib.ExitStack() as patches:
        for part in parts:
            patches.enter_context(part)
        lazy = choose(x, w, k, valid)
    with mock.patch.object(greedy, "decides_on_host", return_value=False):
        eager = choose(x, w, k, valid)
    for row, real in enumerate(valid.sum(1).tolist()):
        a, b = lazy[row, :real], eager[row, :real]
        differ = (a != b).nonzero()[:1, 0]
        if kind == "copies" and choose is PRIMITIVES["max_sum"]:
            differ = differ[:0]  # the sums of two chosen vectors' copies are equal but for rounding
        if kind == "copies":  # a step's products round by place: it may take another copy, and its ways part there
            assert torch.equal(x[row, a[differ]], x[row, b[differ]])
            if choose in (PRIMITIVES[name] for name in ("weighted", "mmr", "mmr3", "dpp_map")):
                assert torch.equal(w[row, a[differ]], w[row, b[differ]])
        else:
            assert a.tolist() == b.tolist()


@pytest.mark.parametrize("choose", [f for name, f in PRIMITIVES.items() if name != "mmr3"])  # that one is in steps
@pytest.mark.parametrize("small", [0, 2**20])
@given(st.integers(0, 999))
@settings(max_examples=10)
def test_of_copies_the_first_is_taken(choose, small, seed):
    g = torch.Generator().manual_seed(seed)
    place = torch.randint(0, 6, (1, 40), generator=g)
    x, w = torch.randn(1, 6, 33, generator=g)[:, place[0]], torch.rand(1, 6, generator=g)[:, place[0]]
    with mock.patch.multiple(host, **dict.fromkeys(SIZES, small)):
        taken = choose(x, w, 6, None)[0].tolist()
    for vector in range(6):
        copies = (place[0] == vector).nonzero()[:, 0].tolist()
        mine = [i for i in taken if i in copies]
        assert mine == copies[: len(mine)]


@pytest.mark.parametrize("kind", ["noise", "copies"])
@given(st.integers(2, 300), st.integers(0, 99))
@settings(max_examples=10)
def test_all_cosines_are_the_same_both_ways(kind, n, seed):
    """Two tokens nearest to each other tie."""
    rows = Rows(made_up(n, 40, kind, torch.float32, seed)[0][0], torch.float32)
    unit = rows.all_scaled()
    assert torch.equal(rows.whole, rows.whole.mT)
    torch.testing.assert_close(rows.whole, unit @ unit.mT, atol=3e-6, rtol=0)


@primitives
def test_what_may_not_be_read_is_chosen_in_steps(choose):
    """Fake tensors, graphs that are traced and functions that are vectorised have no values."""
    x, w = torch.randn(2, 12, 5), torch.rand(2, 12)
    expected = choose(x, w, 4, None)
    with FakeTensorMode() as mode:
        assert choose(mode.from_tensor(x), mode.from_tensor(w), 4, None).shape == (2, 4)
    traced = make_fx(lambda x, w: choose(x, w, 4, None))(x, w)
    assert torch.equal(traced(x.flip(1), w.flip(1)), choose(x.flip(1), w.flip(1), 4, None))
    each = torch.vmap(lambda x, w: choose(x[None], w[None], 4, None)[0])(x, w)
    assert torch.equal(each, expected)


@primitives
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_cpu_at_most_three_times_the_features_are_held(choose, dtype):
    n, d, k = 576, 1024, 63
    held = peak_bytes(
        lambda: (torch.randn(1, n, d).to(dtype), torch.rand(1, n)), lambda given: choose(*given, k, None), fake=False
    )
    assert 0 < held <= 3 * n * d * dtype.itemsize


def test_determinants_know_no_scale_of_the_weights():
    x, w = torch.randn(2, 20, 8), torch.rand(2, 20) + 0.1
    order = dpp_map(x, 7, None, w)
    for scale in (1e-25, 1e30):
        assert torch.equal(dpp_map(x, 7, None, w * scale), order)


def test_a_vector_of_zeros_adds_nothing_to_a_determinant():
    x = torch.randn(1, 9, 12)
    x[0, 4] = 0
    assert dpp_map(x, 9)[0].tolist()[-1] == 4


def test_finite_range_leaves_out_what_is_not_finite():
    score = torch.tensor([[3.0, float("nan"), 1.0, float("inf"), 9.0]])
    valid = torch.tensor([[True, True, True, True, False]])
    found = finite_range(score, valid, 0)
    assert found[0, [0, 2]].tolist() == [1, 0]
    assert found[0, [1, 3, 4]].isnan().all()


def test_what_is_not_usable_is_nobodys_twin():
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    x[0, 1] = x[0, 0]
    usable = torch.tensor([[False, True, True, True, True, True]])
    found = greedy.all_cosines(x, usable)[0]
    assert torch.allclose(found[1:, 1:], torch.nn.functional.cosine_similarity(x[0, 1:, None], x[0, None, 1:], -1))
    assert not found[0].any()
    assert not found[:, 0].any()
