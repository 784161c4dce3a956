"""Of large pictures half of a matrix of all pairs is held: the same numbers, the same choice, less memory."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch
from made_up import made_up, stops_of
from properties import allocated_bytes
from torch._subclasses.fake_tensor import FakeTensorMode

import vtc
from vtc.eval.stability.made_up_spans import Sizes
from vtc.pruners import gprune, mmtok, prunesid
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.primitives import precision
from vtc.pruners.primitives.greedy import all_cosines, barred, coverage, half_cosines, half_matrix

pytestmark = pytest.mark.usefixtures("no_grad")
SIZES = Sizes(heads=2, encoder=16, decoder=24, head=8, text=5, vocabulary=100)
put = half_matrix.HalfMatrix.put
METHODS = [
    "gprune",
    "gprune(similarity=0.1, temperature=0.3)",
    "mmtok",
    "mmtok(space=projected, vision_temperature=0.02)",
    "prunesid",
    "prunesid(per_group=40)",
    "scope",
    "scope(space=projected)",
]


@contextlib.contextmanager
def large(count, strip=100):
    """Pictures of more tokens than `count` are large ones."""
    with mock.patch.multiple(half_matrix, LARGE=count, STRIP=strip):
        yield


def picture(kind, side=20, seed=0, dtype=torch.float32, width=16):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(side**2, width, generator=g)
    if kind == "copies":
        x = x[torch.randint(0, side**2 // 3, (side**2,), generator=g)]
    if kind == "not finite":
        x[::7] = float("nan")
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["noise", "copies", "not finite"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_same_numbers(kind, dtype, elsewhere):
    x = picture(kind, dtype=dtype)[None]
    usable = barred(x) == 0
    parts = [mock.patch.object(coverage, "decides_on_host", return_value=not elsewhere), large(9)]
    if elsewhere:  # of as many tokens at a time, since rounding differs with it
        parts.append(mock.patch.multiple(coverage, ROWS_ELSEWHERE=100, STRIPS=4))
    with contextlib.ExitStack() as patches:
        for part in parts:
            patches.enter_context(part)
        whole, half = all_cosines(x, usable), half_cosines(x, usable)
    g = torch.Generator().manual_seed(1)
    some = torch.randperm(400, generator=g)[:90].sort().values
    assert torch.equal(half.rows(some), whole[:, some])
    for part in (slice(0, 400), slice(0, 1), slice(95, 97), slice(130, 400), slice(399, 400)):
        assert torch.equal(half.rows(part), whole[:, part])
    assert torch.equal(torch.cat(list(half.in_blocks(37)), 1), whole)
    column = torch.randint(0, 400, (1, 400), generator=g)
    assert torch.equal(half.entries(column), whole.gather(2, column[..., None])[..., 0])
    assert torch.equal(half.at_most(111), whole[0, :, 111])
    assert half.held.numel() < 0.65 * 400**2


def spans_of(spec, layout, sizes=SIZES, **options):
    pruner = vtc.parse(spec, keep=0.2)[0]
    return pruner, made_up(pruner, stops_of(pruner)[0], [layout], sizes=sizes, **options)


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("spec", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_choice(spec, dtype, copies):
    pruner, spans = spans_of(spec, Layout((Grid(26, 26),)), dtype=dtype, copies=copies, seed=3)
    tokens = spans.tokens()
    [k] = tokens.budgets
    expected = pruner.select(tokens, k)
    with large(99), mock.patch.object(half_matrix.HalfMatrix, "put", autospec=True, side_effect=put) as asked:
        found = pruner.select(tokens, k)
    assert asked.called
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("spec", METHODS)
def test_the_same_choice_on_a_device(spec):
    """By what never waits for the device, and a pretended one is not waited for."""
    pruner, spans = spans_of(spec, Layout((Grid(20, 20),)), dtype=torch.float64, seed=4)
    tokens = spans.tokens()
    [k] = tokens.budgets
    modules = [coverage, precision, gprune, mmtok, prunesid]
    with contextlib.ExitStack() as patches:
        for module in modules:
            patches.enter_context(mock.patch.object(module, "decides_on_host", return_value=False))
        patches.enter_context(mock.patch.object(coverage, "ROWS_ELSEWHERE", 100))
        expected = pruner.select(tokens, k)
        with large(99):
            assert pruner.select(tokens, k).tolist() == expected.tolist()
    with large(99), FakeTensorMode(allow_non_fake_inputs=True):
        assert pruner.select(spans.tokens(), k).shape[0] == 1


@pytest.mark.parametrize("spec", METHODS[::2])
def test_half_of_the_matrix_is_saved(spec):
    """On the CPU, by the allocator's own record, of 2,500 tokens."""
    pruner, spans = spans_of(spec, Layout((Grid(50, 50),)))
    tokens = spans.tokens()
    whole = allocated_bytes(lambda: pruner.select(tokens, 20))
    with large(99, strip=half_matrix.STRIP), mock.patch.object(coverage, "ROWS", 16):
        half = allocated_bytes(lambda: pruner.select(tokens, 20))
    assert whole - half >= 0.15 * 4 * 2500**2
    assert whole >= 4 * 2500**2


def test_of_20_000_tokens_it_holds_less_than_one_gib():
    for block in (96, 128, 1024):  # of the methods and places
        made = half_matrix.HalfMatrix(torch.empty(0, device="meta"), 1, 20_000, torch.float32, block)
        assert half_matrix.is_large(len(made))
        assert made.held.nbytes <= 0.8 * 2**30
