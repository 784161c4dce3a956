"""Reroute: its stages, who is a candidate at the next one, and the first method by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from contracts import outcome
from methods import Setting
from reference import hidden_per_layer
from zoo import FAMILIES, prompt, tiny

import vtc
from vtc.pruners.base import Loan, LoanAgain, Stop
from vtc.pruners.pyramiddrop import PyramidDrop
from vtc.pruners.signals import AttentionAhead

pytestmark = pytest.mark.usefixtures("no_grad")
TWO = "reroute(first_params={'layers': (1, 4)}, keep=0.25)"


def test_stages_are_loans_to_the_same_tokens():
    [pruner] = vtc.parse(TWO)
    assert [(type(s), s.layer, s.keep) for s in pruner.stops(6)] == [
        (Loan, 1, 0.5),
        (LoanAgain, 2, 0.5),
        (LoanAgain, 3, 0.5),
        (Loan, 4, 0.25),
        (LoanAgain, 5, 0.25),
    ]
    assert [pruner.signals_at(s) for s in pruner.stops(6)] == [(AttentionAhead(),), (), (), (AttentionAhead(),), ()]
    assert vtc.parse("reroute")[0].stops(32)[-1] == LoanAgain(31, 0.125)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("reroute(keep=8)", "reroute.keep=8 must be a fraction"),
        ("reroute(first=fastv)", r"must drop tokens in the decoder.*reads DecoderAttention"),
        ("reroute(first=divprune)", "must drop tokens in the decoder"),
        ("reroute(first=pmod, first_params={'weights': 'untrained'})", "must drop tokens in the decoder"),
        ("reroute(first=reroute)", "must be another method's name"),
        ("reroute(first_params={'keep': 0.5})", "reroute's own keep"),
    ],
)
def test_what_it_can_not_be_is_told(spec, message):
    with pytest.raises(ValueError, match=message):
        vtc.parse(spec)


def test_a_loan_reads_nothing_else():
    @dataclass(kw_only=True)
    class Reads(vtc.Pruner):
        name: ClassVar[str] = "reads"
        stage = "decoder"
        signals = (vtc.pruners.signals.DecoderHidden(),)

        def stops(self, depth: int) -> tuple[Stop, ...]:
            return (Loan(2, 0.5),)

    with pytest.raises(ValueError, match="reads lends at layer 2 and reads DecoderHidden"):
        vtc.compress(tiny("llava"), Reads())


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
def test_all_are_candidates_again_at_the_next_stage(family):
    model, given = tiny(family), prompt(family, "ragged").inputs
    with vtc.compressed(model, TWO):
        model(**given)
        report = model.vtc.report
    rows, width = given["input_ids"].shape
    hidden = hidden_per_layer(report, rows, width, 6)
    assert torch.equal(hidden[1], hidden[2])
    assert torch.equal(hidden[1], hidden[3])
    assert torch.equal(hidden[4], hidden[5])
    assert not hidden[0].any()
    assert (hidden[1] & ~hidden[4]).any(), "some that went round the first stage are in the second"
    for sample in range(rows):
        n = sum(len(s.columns) for s in report.spans if s.sample == sample)
        assert hidden[:, sample].sum(1).tolist() == [0, *[n - n // 2] * 3, *[n - n // 4] * 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stage_of_all_the_rest_equals_the_first_method_on_the_same_tokens(family):
    """One stop, so that nothing comes back: the same as dropping, where sample and span, and rounding, are one."""
    stop = {"layers": (2,)}
    shape = "one"
    rerouted = outcome(Setting("reroute", 0.5, {"first_params": stop}), family, shape)
    report = rerouted.report
    n = sum(len(s.columns) for s in report.spans)
    if len(report.spans) > 1 or n % 2 or report.layouts[0].has_newlines:
        pytest.skip("several spans, newlines or an odd number of tokens")
    dropped = outcome(Setting("pyramiddrop", 0.5, stop), family, shape)
    assert torch.equal(report.steps[0].kept[0], dropped.report.steps[0].kept[0])
    assert torch.equal(rerouted.generated.tokens, dropped.generated.tokens)
    assert torch.allclose(rerouted.generated.logits, dropped.generated.logits, atol=1e-4)


def test_the_second_stage_is_scored_by_the_attention_on_all_tokens():
    """By the last prompt token's attention in layer 4 of an untouched eager model, of which layers 1 to 3 are given."""
    [pruner] = vtc.parse(TWO)
    seen = []
    score = PyramidDrop.score
    first = pruner._first
    first.score = lambda tokens: (seen.append((tokens, score(first, tokens))), seen[-1][1])[1]
    model, given = tiny("llava", "eager"), prompt("llava", "ragged").inputs
    with vtc.compressed(model, pruner):
        model(**given)
        report = model.vtc.report
    assert [tokens.layer for tokens, _ in seen] == [1, 4]
    plain = tiny("llava", "eager")(**given, output_attentions=True).attentions[1]
    tokens, found = seen[0]  # before the first stage nothing is otherwise
    for row, sample in enumerate(tokens.sample.tolist()):
        columns = torch.cat([s.columns for s in report.spans if s.sample == sample])
        want = plain[sample, :, -1].mean(0)[columns]
        assert torch.allclose(found[row, : len(columns)], want, atol=1e-5)
    tokens, found = seen[1]
    assert tokens.counts == seen[0][0].counts, "all are candidates again"
    assert (found[tokens.valid] > 0).all()
