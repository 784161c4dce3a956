"""ToDRE: pivots, and the removal of all visual tokens."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from golden_support import Served, tokens_of
from greedy_tools import Reader, spans_of
from properties import check_selection, chosen
from vision_tools import ready
from zoo import prompt, tiny

import vtc
from vtc.models.layout.model_parts import locate
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import DecoderAttention
from vtc.pruners.todre import PIVOT

pytestmark = pytest.mark.usefixtures("no_grad")


def test_todre_looks_for_its_pivot_in_the_whole_image():
    layout = Layout((Grid(2, 2, "base"), Grid(2, 2, "mosaic", "row")))
    attention = torch.tensor([[0.1, 0.3, 0.2, 0.0, 0.9, 0.8, 0.7, 0.9]])
    place = torch.tensor([0, 1, 2, 3, 4, 5, 7, 8])
    tokens = tokens_of(torch.randn(8, 3), 2, Served({PIVOT: attention[None]}), layouts=[layout])
    tokens = dataclasses.replace(tokens, ids=place[None])
    assert vtc.parse("todre_diversity")[0].select(tokens, 2)[0, 0] == 1


def test_random_pivots_follow_the_seed():
    spans = spans_of((), [40, 40], keep=1)
    pivots = [check_selection(vtc.parse("todre_diversity", pivot="random", pivot_seed=s)[0], spans) for s in range(5)]
    assert len({str(p) for p in pivots}) > 2
    assert all(a == b for a, b in pivots), "the place in the batch plays no part"


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_the_pivot_is_the_class_tokens_or_where_there_is_none_a_random_one(family):
    model, reader, given_ = ready(family), Reader(keep=1, read=PIVOT), prompt(family, "ragged").inputs

    def pivots(spec):
        with vtc.compressed(model, spec):
            model(**given_)
            return [kept.tolist() for kept in model.vtc.report.steps[-1].kept]

    with vtc.compressed(model, reader):
        model(**given_)
    [(attention, _)] = reader.seen
    auto = pivots("todre_diversity(keep=1)")
    if family == "llava":
        tower = locate(model).tower
        tower.set_attn_implementation("eager")
        seen = tower(given_["pixel_values"], output_attentions=True).attentions[-1][:, :, 0, 1:]
        tower.set_attn_implementation("sdpa")
        assert torch.allclose(attention, seen, atol=1e-6)
        assert auto == seen.mean(1).argmax(-1)[:, None].tolist()
    else:
        assert attention.shape[1] == 1
        assert not attention.any()
        assert auto == pivots("todre_diversity(keep=1, pivot=random)")
        assert auto != pivots("todre_diversity(keep=1, pivot_seed=1)")


ROWS = DecoderAttention(queries="text")


@pytest.mark.parametrize("share", [0.05, 0.2])
@pytest.mark.parametrize("keep", [None, 2])
def test_removal_asks_the_text_behind_the_last_picture_of_each_sample(share, keep):
    """Two spans of sample 0, one of sample 1; the text between sample 0's pictures looks hard, and doesn't count."""
    looks = torch.zeros(3, 2, 4, 6)  # [B, H, T, N]
    looks[:2, :, 0] = 0.08  # before the second picture: 0.96 on sample 0's twelve tokens
    looks[:2, :, 1:3, :] = share / 12
    looks[2, :, :, 1] = 0.3
    source = Served({ROWS: looks}, {ROWS: torch.zeros(2, 4, 1)})
    behind = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0], [1, 1, 1, 1]]).bool()
    everything = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    source.text_valid = lambda tokens: everything if tokens is None else behind
    tokens = dataclasses.replace(
        tokens_of(torch.randn(3, 6, 2), keep or 1, source, stage="decoder", layer=5), sample=torch.tensor([0, 0, 1])
    )
    kept = chosen(vtc.parse("todre_removal", keep=keep)[0], tokens)
    left = [0, 1][: keep or 0] if share < 0.1 else [0, 1, 2, 3, 4, 5]
    assert [sorted(row) for row in kept] == [left, left, [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize("spec", ["todre(keep=0.5, tau={})", "todre_removal(tau={})"])
def test_todre_on_a_model_removes_everything_or_nothing(spec, tau):
    model, given_ = tiny("llava"), prompt("llava", "ragged").inputs
    with vtc.compressed(model, spec.format(tau)):
        model(**given_)
        report = model.vtc.report
    assert (report.steps[-1].stage, report.steps[-1].layer) == ("decoder", 5)  # seven eighths of six
    first = 8 if spec.startswith("todre(") else 16
    assert [len(k) for k in report.steps[-1].kept] == [first * (tau == 0)] * len(report.spans)
    if len(report.steps) == 2:
        assert [len(k) for k in report.steps[0].kept] == [8] * len(report.spans)
