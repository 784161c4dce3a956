"""The methods on greedy diversity: bad numbers, autocast, and bad parameters."""

from __future__ import annotations

import pytest
import torch
from golden_support import tokens_of
from greedy_tools import spans_of
from properties import check_selection

import vtc
from vtc.models.selection.select import select_tokens

pytestmark = pytest.mark.usefixtures("no_grad")


SPECS = [
    "divprune",
    "idpruner",
    "idpruner(importance=zoo)",
    "idpruner(importance=flowcut, parallel=2)",
    "idpruner(importance=norm, lam=0.3)",
    "idpruner(importance=uniform, parallel=3)",
    "zoo_prune",
    "zoo_prune(per_frame=False, rank=2)",
    "todre_diversity",
    "todre_diversity(objective=kcenter, pivot=random)",
    "todre",
    "cdpruner",
    "cdpruner(relevance=none)",
    "cdpruner(theta=0.5)",
    "cdpruner(official=True, theta=0.9)",
    "mmtok",
    "prunesid",
    "scope",
    "scope(space=projected)",
    "norm",
    "norm(shortest=True)",
    "cls",
]
methods = pytest.mark.parametrize("spec", SPECS)


@methods
def test_features_that_are_not_finite_are_kept_last(spec):
    pruner = vtc.parse(spec)[0]
    spans = spans_of(pruner.signals, [12], keep=10)
    spans.features[0][2] = spans.features[0][9, 1] = float("nan")
    [kept] = check_selection(pruner, spans)
    if spec != "cls":
        assert sorted(kept) == [i for i in range(12) if i not in (2, 9)]


@methods
def test_autocast_changes_nothing(spec):
    pruner = vtc.parse(spec)[0]
    spans = spans_of(pruner.signals, [30], 32)
    plain, _, _ = select_tokens(pruner, spans.tokens())
    with torch.autocast("cpu", torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        found, _, _ = select_tokens(pruner, spans.tokens())
    assert torch.equal(found[0], plain[0])


def test_divprune_begins_with_the_most_isolated():
    x = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1.0], [0.1, 0.9], [-1, -1]])
    assert vtc.parse("divprune")[0].select(tokens_of(x, 3), 3)[0].tolist()[0] == 4


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("idpruner(importance=none, keep=2)", "importance='none'"),
        ("idpruner(importance=scorer, keep=2)", "scorer"),
        ("idpruner(scorer=x, keep=2)", "goes with importance='scorer'"),
        ("idpruner(lam=1.5, keep=2)", "lam=1.5"),
        ("idpruner(parallel=0, keep=2)", "parallel=0"),
        ("zoo_prune(directions=0, keep=2)", "directions=0"),
        ("zoo_prune(rank=0, keep=2)", "rank=0"),
        ("zoo_prune(step=0.0, keep=2)", "step=0.0"),
        ("todre_diversity(objective=min, keep=2)", "objective='min'"),
        ("todre(pivot=cls, keep=2)", "pivot='cls'"),
        ("cdpruner(relevance=clip, keep=2)", "needs text_encoder"),
        ("cdpruner(relevance=some, keep=2)", "relevance='some'"),
        ("cdpruner(theta=1, keep=2)", "theta=1"),
        ("todre(tau=-0.1, keep=2)", "todre.tau=-0.1"),
        ("todre_removal(tau=2)", "todre_removal.tau=2"),
    ],
)
def test_bad_parameters_are_named(spec, match):
    with pytest.raises(ValueError, match=match):
        vtc.parse(spec)
