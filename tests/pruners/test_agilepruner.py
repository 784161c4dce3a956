"""AgilePruner: the effective rank, and the choice against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from properties import Spans, check_selection, chosen
from torch.nn.functional import cosine_similarity

import vtc
from vtc.pruners.agilepruner import effective_rank

pytestmark = pytest.mark.usefixtures("no_grad")
HEADS = 3


def clusters(g, n, d, groups, noise):
    """Tokens in `groups` of look-alikes."""
    return torch.randn(groups, d, generator=g)[torch.randint(groups, (n,), generator=g)] + noise * torch.randn(
        n, d, generator=g
    )


def make(counts, budgets, pruner, seed=0, d=12, unit=1):
    g = torch.Generator().manual_seed(seed)
    attention, seen = pruner.signals
    reads = {
        attention: [torch.randn(HEADS, n, generator=g).softmax(-1) for n in counts],
        seen: [clusters(g, n, d, 9, 0.3)[:, None] + 0.1 * torch.randn(n, unit, d, generator=g) for n in counts],
    }
    return Spans([torch.zeros(n, 4) for n in counts], budgets, reads)


def slow(pruner, attention, x, budget):
    """The rule with plain loops; also how many had to be filled up."""
    s = torch.linalg.svdvals(x.double())
    q = s / s.sum()
    erank = math.exp(-float((q * q.log()).sum()))
    order = sorted(range(len(x)), key=lambda i: -float(attention[i]))
    kept, removed = [], set()
    for turn, i in enumerate(order, start=1):
        if i in removed or len(kept) == budget:
            continue
        kept.append(i)
        tau = min(pruner.tau_max, turn * pruner.step * erank / pruner.erank_avg)
        removed |= {j for j in order if j not in kept and 1 - float(cosine_similarity(x[i], x[j], dim=0)) < tau}
    missing = budget - len(kept)
    return kept + [i for i in order if i not in kept][:missing], missing


@pytest.mark.parametrize("unit", [1, 4])
def test_against_plain_loops(unit):
    pruner = vtc.parse("agilepruner", step=0.02, erank_avg=4.0)[0]
    filled = []
    for seed, (n, budget) in enumerate([(40, 8), (40, 25), (9, 4), (60, 11)]):
        spans = make([n], [budget], pruner, seed, unit=unit)
        attention, x = (spans.reads[s][0] for s in pruner.signals)
        expected, missing = slow(pruner, attention.mean(0), x.mean(1), budget)
        assert chosen(pruner, spans.tokens())[0] == expected
        assert expected != sorted(range(n), key=lambda i: -float(attention.mean(0)[i]))[:budget]
        filled.append(missing)
    assert min(filled) == 0 < max(filled)


@pytest.mark.parametrize(("n", "d"), [(7, 20), (20, 7), (300, 6)])
def test_the_effective_rank_is_that_of_the_singular_values(n, d):
    x = torch.randn(2, n, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x[1, n // 2 :] = 0  # as padding is
    for row, found in zip((x[0], x[1, : n // 2]), effective_rank(x), strict=True):
        s = torch.linalg.svdvals(row)
        q = s / s.sum()
        assert float(found) == pytest.approx(math.exp(-float((q * q.log()).sum())), rel=1e-6)
    assert float(effective_rank(torch.ones(1, 8, 5))) == pytest.approx(1, abs=1e-5)
    assert float(effective_rank(torch.eye(6)[None])) == pytest.approx(6)


def test_varied_pictures_lose_more_look_alikes():
    """The same tokens in a picture that is said to be simple are kept by attention alone."""
    pruner = vtc.parse("agilepruner")[0]
    spans = make([50], [12], pruner)
    by_attention = spans.reads[pruner.signals[0]][0].mean(0).sort(descending=True, stable=True).indices[:12].tolist()
    assert chosen(vtc.parse("agilepruner", erank_avg=1e9)[0], spans.tokens())[0] == by_attention
    assert chosen(vtc.parse("agilepruner", tau_max=0.0)[0], spans.tokens())[0] == by_attention
    varied = chosen(vtc.parse("agilepruner", erank_avg=2.0)[0], spans.tokens())[0]
    x = spans.reads[pruner.signals[1]][0].mean(1)
    assert effective_rank(x[None, varied]) > effective_rank(x[None, by_attention])


def test_batches_and_what_is_not_finite():
    pruner = vtc.parse("agilepruner", step=0.02, erank_avg=4.0)[0]
    check_selection(pruner, make([30, 12, 21], [9, 5, 20], pruner))
    spans = make([20], [19], pruner)
    attention, seen = (spans.reads[s][0] for s in pruner.signals)
    attention[:, 3] = float("nan")
    seen[5] = float("inf")
    kept = chosen(pruner, spans.tokens())[0]
    assert 3 not in kept
    assert 5 in kept


@pytest.mark.parametrize("spec", ["step=-0.1", "tau_max=2.5", "erank_avg=0"])
def test_wrong_parameters_are_told(spec):
    with pytest.raises(ValueError, match=rf"agilepruner\.{spec.split('=')[0]}=.* is out of range"):
        vtc.parse(f"agilepruner({spec})")
