"""FSR: focus, scan and refine against plain loops, and relevance by CLIP."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from properties import Spans, check_selection, chosen
from torch.nn.functional import cosine_similarity

import vtc
from vtc.bundled_files import BUNDLED
from vtc.pruners.primitives.clip_text import ClipText, read_clip
from vtc.pruners.signals import EncoderAttention, EncoderFeatures

pytestmark = pytest.mark.usefixtures("no_grad")
CLIP = BUNDLED / "clip"  # of the bundled model


def make(counts, budgets, seed=0, d=10, sharp=3):
    g = torch.Generator().manual_seed(seed)
    reads = {EncoderAttention(): [(sharp * torch.randn(2, n, generator=g)).softmax(-1) for n in counts]}
    return Spans([torch.randn(n, d, generator=g) for n in counts], budgets, reads)


def slow(pruner, x, phi, budget):
    """The equations with plain loops: the focus, the scanned tokens in order, and what these become."""
    order = sorted(range(len(x)), key=lambda i: -phi[i])
    focus, mass = [], 0.0
    while not focus or mass < pruner.rho * sum(phi):
        focus.append(order[len(focus)])
        mass += phi[focus[-1]]
    focus = focus[:budget]
    cos = [[float(cosine_similarity(a, b, dim=0)) for b in x] for a in x]
    kept = list(focus)
    while len(kept) < budget:
        kept.append(max((i for i in order if i not in kept), key=lambda i: min(1 - cos[i][j] for j in kept)))
    scan, rest = kept[len(focus) :], [i for i in order if i not in kept]
    owner = {i: max(scan, key=lambda j: cos[i][j]) for i in rest} if scan else {}
    most = sorted(owner, key=lambda i: -cos[i][owner[i]])[: int(pruner.kappa * len(scan) + 0.5)]
    made = {}
    for j in scan:
        mine = [j, *(i for i in most if owner[i] == j)]
        if any(phi[i] > 0 for i in mine):
            made[j] = sum(phi[i] * x[i] for i in mine) / sum(phi[i] for i in mine)
    return focus, scan, made


@pytest.mark.parametrize("params", [{}, {"rho": 0.5}, {"rho": 0.0, "kappa": 2.0}, {"kappa": 0.0}, {"beta": 0.3}])
def test_against_plain_loops(params):
    pruner = vtc.parse("fsr", **params)[0]
    scanned = 0
    for seed, (n, budget) in enumerate([(30, 9), (30, 22), (12, 3)]):
        spans = make([n], [budget], seed)
        tokens = spans.tokens()
        x, phi = spans.features[0], pruner.priority(tokens)[0].tolist()
        s = spans.reads[EncoderAttention()][0].mean(0)
        hat = (s - s.min()) / (s.max() - s.min() + 1e-6)
        assert phi == pytest.approx((hat**pruner.beta).tolist(), abs=1e-6)
        focus, scan, made = slow(pruner, x, phi, budget)
        found = pruner.select(tokens, budget)
        assert found.index[0].tolist() == sorted(focus + scan)
        for column, features in zip(found.index[0].tolist(), found.features[0], strict=True):
            assert torch.allclose(features, made.get(column, x[column]), atol=1e-5)
            assert column in scan or torch.equal(features, x[column])
        scanned += len(scan)
    assert scanned > 0 or params.get("beta")


def test_a_focus_larger_than_the_budget_is_its_best():
    pruner = vtc.parse("fsr", keep=4)[0]
    spans = make([20], [4], sharp=0.1)
    best = pruner.priority(spans.tokens())[0].sort(descending=True).indices[:4].tolist()
    assert chosen(pruner, spans.tokens())[0] == sorted(best)


def test_equal_tokens_are_all_in_the_focus():
    spans = make([20], [6])
    attention = spans.reads[EncoderAttention()][0]
    attention[:] = 0.001
    attention[:, [3, 4, 9]] = 0.3
    spans.features[0][4] = spans.features[0][9] = spans.features[0][3]
    found = chosen(vtc.parse("fsr", keep=6)[0], spans.tokens())[0]
    assert {3, 4, 9} < set(found)


def test_batches_and_what_is_not_finite():
    for spec in ("fsr", "fsr(rho=0.3, kappa=3.0)"):
        check_selection(vtc.parse(spec)[0], make([30, 12, 21], [9, 5, 20]))
    spans = make([20], [17])
    spans.features[0][5] = float("inf")
    spans.reads[EncoderAttention()][0][:, 8] = float("nan")
    found = vtc.parse("fsr(rho=0.5)")[0].select(spans.tokens(), 17)
    assert 5 not in found.index[0]
    assert found.features.isfinite().all()


def test_relevance_is_the_cosine_of_patches_and_question():
    encoder = read_clip(str(CLIP))
    g = torch.Generator().manual_seed(4)
    states = [torch.randn(n, 2, encoder.width, generator=g) for n in (9, 6)]
    spans = make([9, 6], [4, 3])
    spans.reads[EncoderFeatures()] = states
    spans.questions = ["a red star", "how many circles?"]
    text = encoder.text(spans.questions)
    plain, other = (vtc.parse("fsr", text_encoder=str(CLIP), negate=negate)[0] for negate in (False, True))
    assert (plain.uses_text, plain.uses_question, vtc.parse("fsr")[0].uses_text) == (True, True, False)
    for pruner, sign in ((plain, 1), (other, -1)):
        phi = pruner.priority(spans.tokens())
        for row, x in enumerate(states):
            r = sign * (encoder.patches(x) @ text[row]).mean(-1)
            s = spans.reads[EncoderAttention()][row].mean(0)
            hats = [(v - v.min()) / (v.max() - v.min() + 1e-6) for v in (r, s)]
            assert np.allclose(phi[row, : len(x)], hats[0] ** 3 * hats[1], atol=1e-5)
    with mock.patch.object(ClipText, "text", side_effect=AssertionError("without text_encoder nothing is read")):
        vtc.parse("fsr")[0].priority(spans.tokens())


@pytest.mark.parametrize("spec", ["rho=1.5", "alpha=-1.0", "kappa=-0.1"])
def test_wrong_parameters_are_told(spec):
    with pytest.raises(ValueError, match=rf"fsr\.{spec.split('=')[0]}=.* is out of range"):
        vtc.parse(f"fsr({spec})")
