"""PruneSID against its formulas written out, with a whole decomposition in the place of a low-rank one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from greedy_tools import cosines, spans_of
from properties import check_selection

import vtc
from vtc.pruners.prunesid import principal
from vtc.pruners.signals import PreProjector

pytestmark = pytest.mark.usefixtures("no_grad")


def slow(x, keep, per_group, scale):
    """The tokens of each group by falling importance, look-alikes left out; the groups' shares, and what is kept."""
    n = len(x)
    squashed = 1 / (1 + np.exp(-x))
    loading = np.abs(np.linalg.svd(squashed - squashed.mean(0), full_matrices=False)[0][:, : max(1, keep // per_group)])
    group, importance, like = loading.argmax(1), loading.max(1), cosines(x)
    threshold = keep / scale * (like.sum() - n) / (n * (n - 1))
    keys, left_out = {}, []
    for g in set(group.tolist()):
        members = sorted(np.flatnonzero(group == g), key=lambda i: -importance[i])
        taken: list[int] = []
        for i in members:
            if all(like[i, j] < threshold for j in taken):
                keys[i] = len(members) * keep / n - len(taken)
                taken.append(i)
            else:
                left_out.append(i)
    first = sorted(keys, key=lambda i: (-keys[i], i)) + sorted(left_out, key=lambda i: -importance[i])
    return sorted(int(i) for i in first[:keep])


@pytest.mark.parametrize("scale", [1.0, 4.0, 32.0])
@pytest.mark.parametrize("keep", [6, 13, 20])
def test_it_is_its_formulas(keep, scale):
    pruner = vtc.parse("prunesid", keep=keep, scale=scale, per_group=3)[0]
    spans = spans_of((PreProjector(),), [24], keep=keep, dims=6)
    g = torch.Generator().manual_seed(keep)
    # some tokens alike, and components of different strength
    seen = torch.randn(12, 16, generator=g).repeat(2, 1) + 0.3 * torch.randn(24, 16, generator=g) + 0.5
    spans.reads[PreProjector()] = [(seen * torch.linspace(3, 0.3, 16))[:, None]]
    [found] = check_selection(pruner, spans)
    assert sorted(found) == slow(spans.reads[PreProjector()][0][:, 0].double().numpy(), keep, 3, scale)


def test_principal_components_are_those_of_a_whole_decomposition():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 12, generator=g) @ torch.randn(12, 96, generator=g) * 0.3
    squashed = x.double().sigmoid()
    whole = torch.linalg.svd(squashed - squashed.mean(0), full_matrices=False)[0][:, :5]
    found = principal(x, torch.ones(200, dtype=torch.bool), 5)
    torch.testing.assert_close(found.abs(), whole.abs(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("spec", ["prunesid(per_group=0)", "prunesid(scale=0)"])
def test_what_is_out_of_range_is_told(spec):
    with pytest.raises(ValueError, match="is out of range"):
        vtc.parse(spec)
