"""Max-min by products in bfloat16: bounds hold, and the choice is that of unrounded cosines."""

from __future__ import annotations

import pytest
import torch

from vtc.pruners.primitives.greedy import bounded, farthest_point, host, lazily_bounded
from vtc.pruners.primitives.greedy.rows import Rows

LOOKS = ("noise", "alike", "copies", "opposite")


def drawn(look: str, n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Features `[1, N, D]` in bfloat16."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1, n, d, generator=g)
    if look == "alike":
        x += 2 * torch.randn(d, generator=g)
    elif look == "copies":
        x[:, n // 2 :] = x[:, : n - n // 2].clone()
    elif look == "opposite":
        x[:, n // 2 :] = -x[:, : n - n // 2] + 0.1 * x[:, n // 2 :]
    return x.bfloat16()


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch):
    """Products in bfloat16 are the same where they are slow."""
    for module in (bounded, lazily_bounded):
        monkeypatch.setattr(module, "multiplies_bfloat16", lambda: True)


@pytest.mark.parametrize("d", [16, 1024, 4096])
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e10])
def test_distances_are_within_their_bounds(look, d, scale):
    x = drawn(look, 150, d)[0] * scale
    bounds = bounded.bounded(Rows(x, torch.float32), torch.ones(150, dtype=torch.bool), started=False)
    assert bounds is not None
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    true = (1 - unit @ unit.T).numpy()
    other = ~torch.eye(150, dtype=torch.bool).numpy()
    assert (bounds.near(bounds.far) <= true)[other].all()
    assert (true <= bounds.far)[other].all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("look", LOOKS)
def test_the_choice_is_that_of_unrounded_cosines(look, weighted, monkeypatch):
    made = []
    real = bounded.Bounds
    monkeypatch.setattr(bounded, "Bounds", lambda *given: made.append(1) or real(*given))
    monkeypatch.setattr(bounded, "STARTED_FROM", -2.0)
    for seed, (n, d) in enumerate([(2, 8), (40, 64), (150, 256), (300, 1024)]):
        x = drawn(look, n, d, seed)
        valid = torch.arange(n)[None] < n - n // 5
        weight = torch.rand(1, n, generator=torch.Generator().manual_seed(seed)) if weighted else None
        if weight is not None:
            weight[:, 1::4] = 0
            weight[:, n // 2] = float("nan")
        k = n - n // 5
        mine = farthest_point(x, k, valid, weight)
        assert len(made) == seed + 1
        with monkeypatch.context() as plain:
            plain.setattr(host, "bounded", lambda *_: None)
            assert torch.equal(mine, farthest_point(x, k, valid, weight))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("look", LOOKS)
def test_so_is_the_choice_from_some_tokens_at_a_time(look, weighted, monkeypatch):
    made = []
    real = lazily_bounded._Choice
    monkeypatch.setattr(lazily_bounded, "_Choice", lambda *given: made.append(1) or real(*given))
    monkeypatch.setattr(lazily_bounded, "LEAST", (1, 8))
    monkeypatch.setattr(lazily_bounded, "FEW", 16)
    monkeypatch.setattr(lazily_bounded, "AHEAD", 5)
    monkeypatch.setattr(host, "bounded", lambda *_: None)
    monkeypatch.setattr(host, "ISOLATION", 0)
    for seed, (n, d) in enumerate([(2, 8), (40, 64), (150, 256), (300, 1024)]):
        x = drawn(look, n, d, seed)
        valid = torch.arange(n)[None] < n - n // 5
        weight = torch.rand(1, n, generator=torch.Generator().manual_seed(seed)) if weighted else None
        if weight is not None:
            weight[:, 1::4] = 0
            weight[:, n // 2] = float("nan")
        k = min(n - n // 5, d // 2)
        mine = farthest_point(x, k, valid, weight)
        assert len(made) == seed + 1
        with monkeypatch.context() as plain:
            plain.setattr(host, "lazily_bounded", lambda *_: None)
            assert torch.equal(mine, farthest_point(x, k, valid, weight))


@pytest.mark.parametrize("look", LOOKS)
def test_cosines_of_some_tokens_are_within_their_bounds(look):
    x = drawn(look, 150, 1024)[0]
    ones = torch.ones(150)
    choice = lazily_bounded._Choice(Rows(x, torch.float32), ones, torch.zeros(150), first=0, k=4)
    some, others = torch.arange(0, 150, 2), torch.arange(1, 150, 2)
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    for known in (-1.0, 0.0, 0.3, 1.0):
        choice.low[:] = known
        least, most = choice._between(some, *choice._right(others.numpy()))
        true = (unit[others] @ unit[some].T).clamp(max=1)
        assert (least <= true).all()
        assert (true <= most).all()
        assert (most - least <= 2.1 * bounded.ROUNDED * (true - known).abs() + 3e-5).all()


def test_many_equal_tokens_are_chosen_by_index(monkeypatch):
    monkeypatch.setattr(lazily_bounded, "LEAST", (1, 8))
    monkeypatch.setattr(host, "bounded", lambda *_: None)
    x = drawn("noise", 7, 1024).repeat(1, 60, 1)  # every vector 60 times
    weight = torch.ones(1, 420)
    assert farthest_point(x, 300, None, weight)[0, 7:].tolist() == list(range(7, 300))


@pytest.mark.parametrize("bad", [float("nan"), 0.0, 1e-30, 1e20])
def test_lengths_that_products_do_not_bear_go_the_other_way(bad):
    x = drawn("noise", 40, 64)[0]
    x[3] = bad
    assert bounded.bounded(Rows(x, torch.float32), torch.ones(40, dtype=torch.bool), started=False) is None
