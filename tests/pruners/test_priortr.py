"""PriorTR: its formula, spans whose question the null token cannot be told from, and several pictures of a prompt."""

from __future__ import annotations

import math

import pytest
import torch
from contracts import outcome
from methods import Setting
from properties import Spans, check_selection, chosen
from reference import baseline
from zoo import prompt, tiny

import vtc
from vtc.pruners.signals import DecoderAttention, TextEmbeddings

pytestmark = pytest.mark.usefixtures("no_grad")
TEXT, LAST = DecoderAttention(queries="text"), DecoderAttention(queries="last")
HEADS = 3
SPECS = ["queries=question", "queries=question_but_last", "queries=last", "null=1", "null=2, queries=last"]


def make(counts, budgets, texts, seed=0):
    """Spans with `texts` tokens of text behind each."""
    g = torch.Generator().manual_seed(seed)
    rows = [torch.randn(HEADS, t, n, generator=g).softmax(-1) for t, n in zip(texts, counts, strict=True)]
    reads = {
        TEXT: [torch.nn.functional.pad(r, (0, 0, 0, max(texts) - r.shape[1])) for r in rows],
        LAST: [r[:, -1:] for r in rows],
    }
    behind = {TextEmbeddings(): [torch.zeros(t, 1) for t in texts]}
    return Spans([torch.zeros(n, 1) for n in counts], budgets, reads, behind, stage="decoder", layer=3)


def slow_scores(rows, queries, null):
    """The formula with plain numbers; `rows [H][R][N]`."""
    mean = [[sum(head[r][i] for head in rows) / len(rows) for i in range(len(rows[0][0]))] for r in range(len(rows[0]))]
    asked = {"question": mean, "question_but_last": mean[:-1], "last": mean[-1:]}[queries]
    p = [sum(row[i] for row in asked) / len(asked) for i in range(len(mean[0]))]
    q = mean[null]
    p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
    return [a * math.log(a / b) for a, b in zip(p, q, strict=True)]


@pytest.mark.parametrize("spec", SPECS)
def test_the_formula_in_plain_numbers(spec):
    pruner = vtc.parse(f"priortr({spec})", keep=4)[0]
    spans = make([12, 7, 9], [4, 4, 4], [6, 4, 5])
    found = pruner.score(spans.tokens())
    for i, n in enumerate((12, 7, 9)):
        rows = spans.reads[TEXT][i][:, : (6, 4, 5)[i]].tolist()
        expected = torch.tensor(slow_scores(rows, pruner.queries, pruner.null))
        assert torch.allclose(found[i, :n], expected, atol=1e-6)
        best = sorted(range(n), key=lambda j: -expected[j])[:4]
        assert sorted(chosen(pruner, spans.tokens())[i]) == sorted(best)
    check_selection(pruner, make([12, 7, 9], [4, 2, 3], [6, 6, 6]))


def test_a_token_that_the_prior_looks_at_as_much_tells_nothing():
    rows = torch.tensor([[[0.6, 0.2, 0.1, 0.1], [0.6, 0.1, 0.1, 0.2]]])
    reads, behind = {TEXT: [rows], LAST: [rows[:, -1:]]}, {TextEmbeddings(): [torch.zeros(2, 1)]}
    spans = Spans([torch.zeros(4, 1)], [1], reads, behind, stage="decoder", layer=3)
    assert chosen(vtc.parse("priortr(queries=last, keep=1)")[0], spans.tokens())[0] == [3]
    assert chosen(vtc.parse("fastv(keep=1)")[0], spans.tokens())[0] == [0]


@pytest.mark.parametrize(("spec", "text"), [("null=0", 1), ("null=1", 2), ("null=3, queries=last", 2)])
def test_without_a_question_behind_the_null_token_the_last_prompt_token_decides(spec, text):
    spans = make([8, 8], [3, 3], [text, 6], seed=2)
    last = spans.reads[LAST][0].mean(0)[0]
    p = last / last.sum()
    found = vtc.parse(f"priortr({spec}, keep=3)")[0].score(spans.tokens())[0]
    assert torch.allclose(found, p * (p * 8).log(), atol=1e-6)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("shape", ["ragged", "text_row", "touching"])
def test_every_picture_of_every_sample_is_scored_by_the_text_behind_it(family, shape):
    """From an untouched eager model's attention; pictures that touch have the same text behind them."""
    inputs, plain = prompt(family, shape).inputs, baseline(family, shape)
    report = outcome(Setting("priortr(layer=2, keep=5)"), family, shape).forward_report
    positions = plain.positions[..., : inputs["input_ids"].shape[1]]
    maps = tiny(family, "eager")(**inputs, position_ids=positions, output_attentions=True, use_cache=False).attentions
    visual = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    for span in report.spans:
        visual[span.sample, span.columns] = True
    assert len(report.spans) > 1
    for span, kept in zip(report.spans, report.steps[0].kept, strict=True):
        text = inputs["attention_mask"][span.sample].bool() & ~visual[span.sample]
        text[: int(span.columns.max())] = False
        rows = maps[1][span.sample].mean(0)[:, span.columns]
        last = rows[inputs["attention_mask"][span.sample].nonzero().max()]
        behind = text.nonzero()[:, 0]
        p, q = (rows[behind].mean(0), rows[behind[0]]) if len(behind) > 1 else (last, torch.ones_like(last))
        p, q = p / p.sum(), q / q.sum()
        best = (p * (p / q).log()).sort(descending=True, stable=True).indices[:5].sort().values
        assert torch.equal(best, kept)


@pytest.mark.parametrize(
    ("spec", "words"), [("queries=all", "queries='all' is unknown"), ("null=-1", "null=-1 is out of")]
)
def test_wrong_parameters_are_told(spec, words):
    with pytest.raises(ValueError, match=words):
        vtc.parse(f"priortr({spec})")
