"""SCOPE and MMTok: their formulas written out, what they count as text, and what is out of range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from greedy_tools import cosines, slow_cover, spans_of
from properties import check_selection

import vtc
from vtc.pruners.signals import EncoderAttention, PreProjector, TextEmbeddings

pytestmark = pytest.mark.usefixtures("no_grad")
LENGTHS = [14, 9]


@pytest.mark.parametrize("space", ["encoder", "projected"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0])
def test_scope_is_coverage_times_saliency(space, alpha):
    pruner = vtc.parse("scope", space=space, alpha=alpha)[0]
    spans = spans_of((EncoderAttention(), PreProjector()), LENGTHS)
    seen = [x[:, 0] for x in spans.reads[PreProjector()]] if space == "encoder" else spans.features
    for row, found in enumerate(check_selection(pruner, spans)):
        saliency = spans.reads[EncoderAttention()][row].double().mean(0).numpy() ** alpha
        assert found == slow_cover(cosines(seen[row].double().numpy()), len(found), saliency)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


@pytest.mark.parametrize(("alpha", "space"), [(0.0, "encoder"), (0.5, "encoder"), (0.5, "projected")])
def test_mmtok_covers_words_and_tokens(alpha, space):
    pruner = vtc.parse("mmtok", alpha=alpha, text_temperature=0.1, space=space)[0]
    spans = spans_of(pruner.signals, LENGTHS)
    for row, found in enumerate(check_selection(pruner, spans)):
        x, words = (t.double().numpy() for t in (spans.features[row], spans.texts[TextEmbeddings()][row]))
        text = cosines(np.concatenate([words, x]))[: len(words), len(words) :]
        seen = cosines(x if space == "projected" else spans.reads[PreProjector()][row][:, 0].double().numpy())
        covers = np.concatenate([softmax(text / 0.1) / len(words), alpha * softmax(seen / 0.2) / len(seen)])
        # scaled, since ``slow_cover`` takes differences below 1e-9 for rounding
        assert found == slow_cover(1000 * covers, len(found), np.ones(len(x)))


def test_mmtok_without_text_covers_the_picture():
    pruner = vtc.parse("mmtok")[0]
    spans = spans_of(pruner.signals, [12])
    tokens = spans.tokens()
    tokens.source.text_valid = lambda tokens: torch.zeros(1, 4, dtype=torch.bool)
    seen = cosines(spans.reads[PreProjector()][0][:, 0].double().numpy())
    found = pruner.select(tokens, 5)[0].tolist()
    assert found == slow_cover(1000 * softmax(seen / 0.2), 5, np.ones(12))


@pytest.mark.parametrize("spec", ["scope", "scope(space=projected)", "mmtok", "mmtok(space=projected)"])
def test_a_token_that_is_not_finite_comes_last(spec):
    pruner = vtc.parse(spec)[0]
    spans = spans_of(pruner.signals, [12], keep=10)
    for rows in (spans.features, *(v for s, v in spans.reads.items() if isinstance(s, PreProjector))):
        rows[0][2] = rows[0][9, ..., 1] = float("nan")
    [kept] = check_selection(pruner, spans)
    assert sorted(kept) == [i for i in range(12) if i not in (2, 9)]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("scope(alpha=-1)", "scope.alpha=-1 is out of range"),
        ("scope(space=text)", "allowed are encoder, projected"),
        ("mmtok(space=text)", "allowed are encoder, projected"),
        ("mmtok(alpha=-0.5)", "mmtok.alpha=-0.5 is out of range"),
        ("mmtok(text_temperature=0)", "mmtok.text_temperature=0 is out of range"),
    ],
)
def test_what_is_out_of_range_is_told(spec, words):
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        vtc.parse(spec)
