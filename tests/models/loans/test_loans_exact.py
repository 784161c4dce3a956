"""Tokens that go round layers, gated by random routers: what the untouched model gives with masks and the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract_checks import batch_equals_one_by_one, pruned_equals_masked
from contracts import TOLERANCE, outcome
from generating import beams, dialogue_of
from methods import cells
from reference import allowed, baseline, greedy, reference, text_model
from routed import EVERYWHERE, ROUTED, Of, Routed
from versions import beam_shape, second_turn_shape
from zoo import FAMILIES, SPECIAL, prompt, tiny

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")
SHAPES = ("one", "right", "text_row", "touching", "sizes", "video", "ends")


@pytest.mark.parametrize(("setting", "family"), cells([ROUTED, EVERYWHERE], FAMILIES))
def test_a_gated_forward_is_the_masked_one(setting: Of, family: str) -> None:
    pruned_equals_masked(setting, family, "ragged")


@pytest.mark.parametrize(("setting", "family", "shape"), cells([ROUTED], FAMILIES, *SHAPES))
def test_a_gated_forward_is_the_masked_one_under_every_prompt_shape(setting: Of, family: str, shape: str) -> None:
    pruned_equals_masked(setting, family, shape)


@pytest.mark.parametrize(("setting", "family"), cells([EVERYWHERE], FAMILIES))
def test_batch_equals_one_by_one(setting: Of, family: str) -> None:
    batch_equals_one_by_one(setting, family, "text_row")


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_5_vl"])
def test_eager_attention_gives_the_same(family: str) -> None:
    found, plain = outcome(ROUTED, family, "text_row", "eager"), baseline(family, "text_row", "eager")
    model, given = tiny(family, "eager"), prompt(family, "text_row").inputs
    routers = ROUTED.pruner.gates_of  # type: ignore[attr-defined]
    truth = reference(model, given, found.report, plain.positions, found.generated.tokens, routers=routers)
    width = given["input_ids"].shape[1]
    assert (found.generated.logits - truth[:, width - 1 :]).abs().max() < TOLERANCE
    assert torch.equal(allowed(truth[:, width - 1 :]).argmax(-1), found.generated.tokens)


@pytest.mark.share(2)
@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_flex_attention_gives_the_same(family: str) -> None:
    """Uncompiled it is slow, and its masks are all that could be wrong: two layers are lent."""
    inputs, lender = prompt(family, "text_row").inputs, Routed(lent=((2, 0.5), (5, 0.2)))
    found = []
    for impl in ("sdpa", "flex_attention"):
        with vtc.compressed(tiny(family, impl), lender) as model:
            found.append(model(**inputs).logits[inputs["attention_mask"].bool()])
    assert (found[0] - found[1]).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_method_of_the_input_stage_in_front(family: str) -> None:
    """Candidates, and their number, are what that leaves."""
    model, inputs = tiny(family), prompt(family, "text_row").inputs
    lender = Routed(lent=((1, 0.5), (4, 0.25)))
    with vtc.compressed(model, [*vtc.parse("uniform(keep=0.5)"), lender]):
        cached, uncached = greedy(model, inputs, 4), greedy(model, inputs, 4, use_cache=False)
        report = model.vtc.report
    assert (cached.logits - uncached.logits).abs().max() < TOLERANCE
    first, *loans = report.steps
    left = [sum(len(first.kept[i]) for i, s in enumerate(report.spans) if s.sample == b) for b in range(3)]
    for step, ratio in zip(loans, (0.5, 0.25), strict=True):
        taken = [sum(len(step.kept[i]) for i, s in enumerate(report.spans) if s.sample == b) for b in range(3)]
        assert taken == [int(n * ratio) for n in left]
        assert all(set(a.tolist()) <= set(b.tolist()) for a, b in zip(step.kept, first.kept, strict=True))
    assert report.tokens_kept == sum(left)
    every = report.tokens_per_layer
    assert every == [sum(left), loans[0].kept and sum(map(len, loans[0].kept)), *[sum(left)] * 2,
                     sum(map(len, loans[1].kept)), sum(left)]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_with_and_without_a_cache(family: str) -> None:
    model, inputs = tiny(family), prompt(family, beam_shape(family, "text_row")).inputs
    with vtc.compressed(model, ROUTED.pruner):
        cached, uncached = beams(model, inputs), beams(model, inputs, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    assert torch.allclose(cached.sequences_scores, uncached.sequences_scores, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_turn_equals_a_fresh_prefill(family: str) -> None:
    model, inputs = tiny(family), prompt(family, second_turn_shape(family)).inputs
    with vtc.compressed(model, ROUTED.pruner):
        first = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, suppress_tokens=SPECIAL, return_dict_in_generate=True
        )
        dialogue, text = dialogue_of(inputs, first.sequences, [7, 8, 9])
        fresh = greedy(model, dialogue, 4)
        second = greedy(model, text, 4, past_key_values=first.past_key_values)
    assert torch.equal(second.tokens, fresh.tokens)
    assert (second.logits - fresh.logits).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_give_whole_sequences_and_what_goes_round_is_gated(family: str) -> None:
    model, inputs = tiny(family), prompt(family, "one").inputs
    width = inputs["input_ids"].shape[1]
    model(**inputs, output_hidden_states=True)  # whoever collects them may have hooks already
    with vtc.compressed(model, EVERYWHERE.pruner):
        out = model(**inputs, output_hidden_states=True, output_attentions=True)
        report, states = model.vtc.report, out.hidden_states
    assert [x.shape[1] for x in states] == [width] * (len(text_model(model).layers) + 1)
    for step in report.steps:
        if family == "qwen3_vl" and step.layer < 4:
            continue  # what is added behind these layers is not among what they give
        for span, kept in zip(report.spans, step.kept, strict=True):
            gone = torch.ones(len(span.columns), dtype=torch.bool)
            gone[kept] = False
            columns = span.columns[gone]
            before = states[step.layer][span.sample, columns]
            gate = EVERYWHERE.pruner.gates_of(step.layer, before)  # type: ignore[attr-defined]
            behind = states[step.layer + 1][span.sample, columns]
            if step.layer + 1 < len(states) - 1:  # the last one is behind the norm
                assert torch.allclose(behind, before * gate[:, None], atol=1e-5)


def test_a_text_row_and_text_alone_are_left_alone() -> None:
    model, inputs = tiny("llava"), prompt("llava", "text_row").inputs
    text = prompt("llava", "text").inputs
    plain, plain_text = model(**inputs).logits, model(**text).logits
    with vtc.compressed(model, EVERYWHERE.pruner):
        changed = model(**inputs).logits
        assert torch.equal(model(**text).logits, plain_text)
    rows = [b for b, media in enumerate(prompt("llava", "text_row").media) if not media]
    valid = inputs["attention_mask"].bool()
    for b in range(len(valid)):
        same = torch.allclose(changed[b][valid[b]], plain[b][valid[b]], atol=TOLERANCE)
        assert same == (b in rows)


def test_what_a_layer_holds_and_what_it_costs() -> None:
    from vtc.eval.cost.prefill_cost import Measured, lm_cost

    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    with vtc.compressed(model, ROUTED.pruner):
        out: Any = model(**inputs, use_cache=True)
        report = model.vtc.report
    text = inputs["input_ids"].shape[1] - report.tokens_total
    held = [layer.keys.shape[-2] for layer in out.past_key_values.layers]
    assert held == [text + n for n in report.tokens_per_layer]
    measured = Measured.from_report(report, 0, 6)
    assert measured.per_layer == tuple(report.tokens_per_layer)
    assert measured.kept == measured.total == report.tokens_kept == report.tokens_total
    size = sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in out.past_key_values.layers)
    assert lm_cost(model).kv_bytes(held) == size
