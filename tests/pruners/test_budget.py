"""Budgets by picture: busy ones get more, old ones less, small ones are left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden_support import Served, tokens_of
from torch.nn.functional import normalize
from zoo import prompt, tiny

import vtc
from vtc.pruners.base import Merged
from vtc.pruners.budget import LEAST, MOST, Budget, spread_of
from vtc.pruners.signals import Projected
from vtc.pruners.visual_tokens import VisualTokens


def pictures(*spreads: float, n: int = 40, keep: int = 10, sample: tuple[int, ...] = ()) -> VisualTokens:
    """Pictures whose tokens differ from one vector by noise of these sizes; one prompt each, or those of `sample`."""
    r = np.random.default_rng(0)
    x = (1 + np.array(spreads)[:, None, None] * r.standard_normal((len(spreads), n, 8))).astype(np.float32)
    tokens = tokens_of(x, keep, Served({Projected(): torch.from_numpy(x)}))
    if sample:
        tokens.sample = torch.tensor(sample)
        tokens.order = [sum(s == sample[i] for s in sample[:i]) for i in range(len(sample))]
    return tokens


def kept(pruner: Budget, tokens: VisualTokens) -> list[int]:
    found = pruner.select(tokens, max(tokens.budgets))
    index = found.index if isinstance(found, Merged) else found
    return (index >= 0).sum(1).tolist()


def test_spread_is_one_minus_the_mean_cosine() -> None:
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    unit = normalize(x, dim=-1)
    assert spread_of(x) == pytest.approx(float(1 - (unit @ unit.T).mean()), abs=1e-5)
    assert spread_of(torch.ones(5, 4)) == pytest.approx(0, abs=1e-6)
    assert spread_of(x.bfloat16()) == pytest.approx(float(spread_of(x)), abs=1e-2)


def test_busy_pictures_get_more_and_plain_ones_less() -> None:
    tokens = pictures(0.01, 0.8, 3.0)
    pruner = Budget(keep=10, first="uniform", busy=2.0, usual=0.4)
    wanted = [min(MOST, max(LEAST, (float(spread_of(x)) / 0.4) ** 2)) for x in tokens.features]
    assert pruner.factors(tokens) == pytest.approx(wanted, rel=1e-4)
    assert kept(pruner, tokens) == [round(10 * f) for f in wanted]
    assert wanted[0] == LEAST < wanted[1] < wanted[2]
    for i, x in enumerate(tokens.features):  # whatever else is in the batch
        alone = tokens_of(x[None], 10, Served({Projected(): x[None]}))
        assert kept(pruner, alone) == kept(pruner, tokens)[i : i + 1]


@pytest.mark.parametrize("first", ["uniform", "divprune", "pool"])
def test_without_a_policy_it_is_the_first_method(first: str) -> None:
    tokens = pictures(0.5, 1.0)
    plain, ours = vtc.parse(first, keep=10)[0], Budget(keep=10, first=first, busy=0.0)
    want, found = plain.select(tokens, 10), ours.select(tokens, 10)
    if isinstance(want, Merged):
        assert isinstance(found, Merged)
        assert torch.allclose(found.features, want.features)
        want, found = want.index, found.index
    assert torch.equal(found.sort().values, want.sort().values)


def test_the_newest_are_sharp_and_older_ones_shrink() -> None:
    tokens = pictures(*[1.0] * 5, sample=(0, 0, 0, 0, 1))
    pruner = Budget(keep=16, first="uniform", busy=0.0, decay=0.5, sharp=2)
    tokens.budgets = [16] * 5
    assert kept(pruner, tokens) == [4, 8, 16, 16, 16]


def test_small_pictures_are_left_alone() -> None:
    tokens = pictures(1.0, 1.0, n=12, keep=2)
    assert kept(Budget(keep=2, first="uniform", busy=0.0, floor=12), tokens) == [12, 12]
    assert kept(Budget(keep=2, first="uniform", busy=0.0, floor=5), tokens) == [5, 5]


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_budgets_of_a_whole_prompt(decay: float) -> None:
    """Of three prompts the second has two pictures; as the host counts them."""
    model = vtc.compress(tiny("llava"), "budget", keep=8, first="uniform", decay=decay, busy=0.0)
    try:
        with torch.no_grad():
            model(**prompt("llava", "ragged").inputs)
        (step,) = model.vtc.report.steps
    finally:
        vtc.restore(model)
    assert [len(ids) for ids in step.kept] == [8, 8 if decay == 1 else 4, 8, 8]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"first": "budget"}, "another method"),
        ({"first": "flowcut"}, "must choose once"),
        ({"first": "deep_random"}, "must choose once"),
        ({"first_params": {"keep": 3}}, "budget's own keep"),
        ({"busy": -1.0}, r"busy must be in \[0, 8\]"),
        ({"decay": 1.5}, r"decay must be in \[0, 1\]"),
        ({"sharp": 0}, "sharp must be at least 1"),
    ],
)
def test_wrong_values(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Budget(keep=0.5, **given)
