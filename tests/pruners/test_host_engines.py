"""Methods with an engine of their own for the CPU: it chooses what the engine without a host sync chooses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import vtc
from vtc.pruners import holov, vispruner
from vtc.pruners.layout import Layout
from vtc.pruners.primitives import nearest_rows
from vtc.pruners.primitives.merge_rounds import merge_rounds, nearest, on_host, products
from vtc.pruners.primitives.merge_rounds import rounds as rounds_of
from vtc.pruners.primitives.merging import combine, group_sums, membership, symmetric_products
from vtc.pruners.primitives.nearest_rows import among_nearest, nearest_ids
from vtc.pruners.signals import EncoderAttention, Signal
from vtc.pruners.vispruner import VisPruner, remove_alike
from vtc.pruners.visual_tokens import SignalSource, VisualTokens

LOOKS = ("noise", "copies", "holes", "small numbers", "offset")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Given(SignalSource):
    """One tensor as every signal."""

    def __init__(self, values: Tensor):
        self.values, self.declared = values, (EncoderAttention(),)

    def read(self, signal: Signal, tokens: VisualTokens) -> Tensor:
        return self.values


def drawn(look: str, *shape: int, seed: int) -> Tensor:
    """Features `[B, N, ...]` of one look."""
    g = torch.Generator().manual_seed(seed)
    x, n = torch.randn(*shape, generator=g), shape[1]
    if look == "copies":
        x = x[:, torch.randint(0, 1 + n // 3, (n,), generator=g)]
    elif look == "holes":
        x[:, 1::5] = float("nan")
    elif look == "small numbers":
        x = x.clamp(-1, 1).round()
    elif look == "offset":
        x = x + 3 * torch.randn(shape[-1], generator=g)
        x[:, ::5] = 0
    return x


@given(
    st.sampled_from(LOOKS),
    st.lists(st.integers(2, 60), min_size=1, max_size=3),
    st.sampled_from([3, 16, 300]),
    st.sampled_from(DTYPES),
    st.sampled_from([0.1, 0.3, 0.5]),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 999),
)
@settings(max_examples=120)
def test_merging_on_the_host_is_that_of_every_device(look, counts, width, dtype, share, most, weighted, seed):
    n = max(counts)
    x = drawn(look, len(counts), n, width, seed=seed).to(dtype)
    valid = torch.arange(n) < torch.tensor(counts)[:, None]
    weight = valid * (torch.arange(n) % 4 + 1.0 if weighted else 1.0)
    left, rounds = list(counts), []
    for _ in range(most if min(counts) > 2**most else 1):
        rounds.append([min(m // 2, max(1, int(m * share))) for m in left])
        left = [m - r for m, r in zip(left, rounds[-1], strict=True)]
    here = merge_rounds(x, weight, valid, counts, rounds)
    there = rounds_of._anywhere(x, weight, valid, counts, rounds)
    for i, (m, count) in enumerate(zip(left, counts, strict=True)):
        assert here.column[i, :m].tolist() == there.column[i, :m].tolist()
        assert here.owner[i, :count].tolist() == there.owner[i, :count].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("look", LOOKS)
def test_candidates_by_rounded_products_lead_to_the_same_merging(look, dtype, monkeypatch):
    monkeypatch.setattr(nearest, "worth_rounding", lambda _: True)
    for seed, n in enumerate((7, 60, 301)):
        x, weight = drawn(look, 1, n, 48, seed=seed).to(dtype), torch.ones(1, n)
        if seed:  # one region of near tokens
            x[:, n // 2 :] = (x[:, n // 2 :].float() * 0.05 + 1).to(dtype)
        rounds = [[n // 2], [n // 8]]
        here = merge_rounds(x, weight, weight > 0, [n], rounds)
        there = rounds_of._anywhere(x, weight, weight > 0, [n], rounds)
        assert torch.equal(here.column, there.column)
        assert torch.equal(here.owner, there.owner)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rounded_product_is_not_further_off_than_its_bound(dtype):
    x = (drawn("noise", 1, 600, 4096, seed=3)[0] + 0.5).to(dtype)
    sums = products.Sums(x, torch.ones(600))
    sums.scale_by(1 / sums.lengths())
    rounded = nearest.Rounded(sums, torch.ones(300, dtype=torch.bool))
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    for rounded.expected in (0.0, 0.1, 0.9):
        found, less, moved = rounded.above_expected(slice(0, 300))
        off = found.double() + less[:, None] - unit[::2] @ unit[1::2].T
        bound = moved[:, None] + rounded.off + nearest.HALF_STEP * found.abs() * 1.01 + on_host.ROUNDING
        assert (off.abs() <= bound).all()


@given(
    st.sampled_from(LOOKS),
    st.lists(st.integers(2, 90), min_size=1, max_size=3),
    st.sampled_from([*DTYPES, torch.float64]),
    st.sampled_from([1, 4, 16]),
    st.sampled_from([0.0, 1.0, 6.0]),
    st.booleans(),
    st.integers(0, 999),
)
@settings(max_examples=80)
def test_budgets_by_some_cosines_are_those_by_all(look, counts, dtype, crops, sharp, official, seed):
    n, g = max(counts), torch.Generator().manual_seed(seed)
    x = drawn(look, len(counts), n, 24, seed=seed).to(dtype)
    x[:, : n // 3] = (x[:, : n // 3].float() * 1e-3 + 1).to(dtype)  # a blank sky
    attention = (sharp * torch.rand(len(counts), 1, n, generator=g)).softmax(-1)
    budgets = [max(1, c // 3) for c in counts]
    tokens = VisualTokens(
        features=x,
        ids=torch.arange(n).expand(len(counts), -1),
        counts=counts,
        budgets=budgets,
        layouts=[Layout.line(c) for c in counts],
        sample=torch.arange(len(counts)),
        order=[0] * len(counts),
        source=Given(attention),
    )
    pruner = vtc.parse(f"holov(crops={crops}, official={official})", keep=max(budgets))[0]
    here = pruner.select(tokens, max(budgets))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holov, "decides_on_host", lambda _: False)
        there = pruner.select(tokens, max(budgets))
    for found, wanted, k in zip(here, there, budgets, strict=True):
        assert found[:k].tolist() == wanted[:k].tolist()


@pytest.mark.parametrize("rounds", [[10] * 8, [50, 25]], ids=["all products", "a product a round"])
def test_both_ways_to_products_on_the_host_are_taken(rounds):
    x = drawn("noise", 100, 64, seed=1)
    assert on_host._all_at_once(x, rounds) == (len(rounds) == 8)
    found = on_host.choose_on_host(x, torch.ones(100), rounds)
    assert found is not None
    assert len(found[0]) == 100 - sum(rounds)


@pytest.mark.parametrize("scale", [1e-8, 1e17])
def test_lengths_that_float32_can_not_square_go_the_other_way(scale):
    x = drawn("noise", 20, 8, seed=2) * scale
    assert on_host.choose_on_host(x, torch.ones(20), [5]) is None


def test_float32_products_are_closer_than_what_counts_as_close():
    for offset in (0.0, 5.0):
        x = torch.nn.functional.normalize(drawn("noise", 600, 4096, seed=3) + offset, dim=-1)
        error = (x[::2] @ x[1::2].T).double() - x[::2].double() @ x[1::2].double().T
        assert error.abs().max() < on_host.ROUNDING / 3


@given(
    st.sampled_from(LOOKS[:3]),
    st.lists(st.tuples(st.integers(1, 80), st.floats(0, 1)), min_size=1, max_size=3),
    st.sampled_from(DTYPES),
    st.sampled_from([1, 3, 8]),
    st.sampled_from([1, 4, 64]),
    st.integers(0, 999),
)
@settings(max_examples=80)
def test_look_alikes_on_the_host_are_those_of_every_device(look, sizes, dtype, step, known, seed):
    left = [n for n, _ in sizes]
    goal = [int(n * share) for n, share in sizes]
    seen = drawn(look, len(left), max(left), 2, 8, seed=seed).to(dtype)
    pruner = vtc.parse(f"vispruner(step={step})", keep=4)[0]
    assert isinstance(pruner, VisPruner)
    rest = torch.randperm(max(left), generator=torch.Generator().manual_seed(seed)).expand(len(left), -1)
    rest = rest.remainder(torch.tensor(left)[:, None]) if len(set(left)) == 1 else _lists(left)
    there, cosine = rest, pruner._cosine(seen)
    for split, dropped in pruner._rounds(left, goal, seen.device):
        there = pruner._round(there, cosine, split, dropped)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vispruner, "NEIGHBOURS", known)
        for i, (n, g) in enumerate(zip(left, goal, strict=True)):
            assert remove_alike(seen[i], rest[i, :n].clone(), g, step).tolist() == there[i, :g].tolist()


def _lists(left: list[int]) -> Tensor:
    """A list of each row's tokens, backwards, padded."""
    return torch.stack([torch.cat([torch.arange(n).flip(0), torch.zeros(max(left) - n).long()]) for n in left])


def test_more_cosines_than_a_gibibyte_are_refused_where_they_are_held():
    with pytest.raises(NotImplementedError, match=r"vispruner compares all 20000 tokens.*GiB.*another method"):
        VisPruner._cosine(torch.empty(1, 20000, 1, 8, device="meta"))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sums_of_groups_are_a_product(dtype, weighted):
    x = drawn("holes", 2, 50, 9, seed=4).to(dtype)
    group, member = torch.arange(100).view(2, 50) * 7 % 8 - 1, torch.arange(50).expand(2, -1) % 6 > 0
    weight = torch.rand(2, 50) if weighted else None
    inside = membership(group, 5, member, weight)
    sums, sizes = group_sums(x, group, 5, member, weight)
    assert torch.allclose(sizes, inside.sum(2), atol=1e-6)
    assert torch.allclose(sums, combine(inside, x), atol=1e-4)


@pytest.mark.parametrize("n", [5, 128, 131])
def test_symmetric_products_are_all_products(n):
    x = drawn("noise", 2, n, 40, seed=n)
    assert torch.allclose(symmetric_products(x), x @ x.transpose(1, 2), atol=1e-4)
    assert torch.allclose(symmetric_products(x), symmetric_products(x).transpose(1, 2), atol=1e-4)


@given(st.sampled_from(LOOKS), st.integers(1, 3), st.sampled_from(DTYPES), st.booleans(), st.integers(0, 999))
@settings(max_examples=80)
def test_members_of_classes_on_the_host_are_those_of_every_device(look, k, dtype, alike, seed):
    table = drawn(look, 1, 700, 16, seed=seed)[0].to(dtype)
    x = torch.cat([drawn("noise", 1, 40, 16, seed=seed + 1)[0], table[:30].float() * 2, torch.zeros(1, 16)]).to(dtype)
    if alike:
        x = x + 4 * table[650].nan_to_num(0, 0, 0)
    classes = [torch.tensor([3, 650]), torch.tensor([11]), torch.tensor([], dtype=torch.int64)]
    found = among_nearest(x[None], table, k, classes)
    near = nearest_ids(x[None], table, k)
    for ids, member in zip(classes, found, strict=True):
        assert torch.equal(member, (near[..., None] == ids).any(-1).any(-1))


def test_most_vectors_are_not_compared_with_the_whole_vocabulary():
    x, table = drawn("noise", 1, 400, 64, seed=1)[0], drawn("noise", 1, 9000, 64, seed=2)[0]
    x[:200] = table[8000] + 0.1 * x[:200]
    with FlopCounterMode(display=False) as counted:
        [member] = among_nearest(x, table, 3, [torch.tensor([8000])])
    assert member[:200].all()
    assert member.sum() < 210
    assert counted.get_total_flops() < 2 * 400 * 9000 * 64 / 2


def test_what_rounding_could_decide_is_left_to_the_whole_comparison():
    table = drawn("noise", 1, 900, 16, seed=3)[0]
    table[[20, 500, 800]] = table[7] * (1 + 1e-7 * torch.arange(3)[:, None])
    _, undecided = nearest_rows._Scan(table[[7, 8]], table, 3, [torch.tensor([800])]).members()
    assert undecided.tolist() == [True, False]


def test_where_no_vector_is_left_over_none_is_a_member():
    table = drawn("noise", 1, 900, 16, seed=3)[0]
    x = -table[7].expand(2, 3, -1)
    assert not nearest_rows._Scan(x.flatten(0, 1), table, 3, [torch.tensor([7])]).members()[1].any()
    assert [m.any().item() for m in among_nearest(x, table, 3, [torch.tensor([7])])] == [False]
