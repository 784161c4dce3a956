"""Contracts 1, 2 and 4: keep=1.0 is the unpruned model; pruned equals masked; and pruning really happened."""

from __future__ import annotations

import pytest
import torch
from contract_checks import pruned_equals_masked
from contracts import TOLERANCE, outcome
from methods import BOTH_STAGES, IN_THE_TOWER, METHODS, ONE_LAYER, PIPELINES, SETTINGS, TWO_LAYERS, Setting, cells, fits
from reference import (
    allowed,
    baseline,
    features_given,
    greedy,
    hidden_per_layer,
    kept_at_end,
    reference,
    text_model,
)
from zoo import FAMILIES, prompt, tiny

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize(("setting", "family"), cells(METHODS, FAMILIES))
def test_keeping_everything_is_the_unpruned_model_bit_for_bit(setting: Setting, family: str) -> None:
    model, plain = tiny(family), baseline(family, "ragged")
    inputs = prompt(family, "ragged").inputs
    width = inputs["input_ids"].shape[1]
    with vtc.compressed(model, setting.pruner, keep=1.0, **setting.params):
        logits = model(**inputs, position_ids=plain.positions[..., :width], use_cache=False).logits
        again = greedy(model, inputs, 4)
        assert model.vtc.report.tokens_kept == model.vtc.report.tokens_total > 0
    assert torch.equal(logits, plain.logits)
    assert torch.equal(again.tokens, plain.generated.tokens[:, :4])
    assert torch.equal(again.logits, plain.generated.logits[:, :4])


@pytest.mark.parametrize(("setting", "family"), cells(SETTINGS, FAMILIES))
def test_pruned_equals_masked(setting: Setting, family: str) -> None:
    pruned_equals_masked(setting, family, "ragged")


@pytest.mark.parametrize(
    ("setting", "family", "shape"),
    cells([BOTH_STAGES, TWO_LAYERS, IN_THE_TOWER], FAMILIES, "one", "right", "text_row", "touching", "sizes", "video"),
)
def test_pruned_equals_masked_under_every_prompt_shape(setting: Setting, family: str, shape: str) -> None:
    pruned_equals_masked(setting, family, shape)


@pytest.mark.share(3)
@pytest.mark.parametrize(
    ("setting", "family", "shape"),
    cells(PIPELINES, FAMILIES, "ends", "long_text") + cells(METHODS, ["llava", "gemma3", "qwen3_vl"], "ends"),
)
def test_pruned_equals_masked_where_a_row_ends_in_a_picture_and_where_the_longest_has_none(
    setting: Setting, family: str, shape: str
) -> None:
    if shape == "ends" and setting.in_the_tower:
        pytest.skip("a token that the encoder dropped has no features to ask with: see the next test")
    pruned_equals_masked(setting, family, shape)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", ["random(at='vision', layer=1, keep=0.4)", "random(keep=0.4)"])
def test_the_last_token_left_answers_where_the_last_one_can_not(family: str, spec: str) -> None:
    """Pruned inside the encoder, or with compact positions, a prompt ends with the last visual token that is left."""
    if "vision" in spec and not fits(IN_THE_TOWER, family):
        pytest.skip("no pruning inside this tower")
    positions = "keep" if "vision" in spec else "compact"
    if positions == "compact" and family.startswith("qwen"):
        pytest.skip("compact positions are refused")
    model, given = tiny(family), prompt(family, "ends").inputs
    with vtc.compressed(model, spec, positions=positions):
        out = model(**given, output_hidden_states=True)
        report = model.vtc.report
    kept = kept_at_end(report, given["attention_mask"], len(text_model(model).layers))
    for row in range(len(kept)):
        last = int(kept[row].nonzero().max())
        assert torch.equal(out.logits[row, -1], out.logits[row, last])
        assert out.logits[row, -1].any()


@pytest.mark.parametrize(("setting", "family"), cells([BOTH_STAGES, ONE_LAYER, IN_THE_TOWER], FAMILIES))
def test_pruned_equals_masked_with_eager_attention(setting: Setting, family: str) -> None:
    pruned, plain = outcome(setting, family, "text_row", "eager"), baseline(family, "text_row", "eager")
    model, given = tiny(family, "eager"), prompt(family, "text_row").inputs
    with features_given(model, pruned.features):
        logits = reference(model, given, pruned.report, plain.positions, pruned.generated.tokens)
    width = given["input_ids"].shape[1]
    assert (pruned.generated.logits - logits[:, width - 1 :]).abs().max() < TOLERANCE
    assert torch.equal(allowed(logits[:, width - 1 :]).argmax(-1), pruned.generated.tokens)


@pytest.mark.parametrize(("setting", "family"), cells(SETTINGS, FAMILIES))
def test_the_asked_counts_are_kept_and_nothing_else_is_held(setting: Setting, family: str) -> None:
    pruned, plain = outcome(setting, family, "ragged"), baseline(family, "ragged")
    model, given = tiny(family), prompt(family, "ragged").inputs
    report, layers = pruned.report, text_model(model).layers
    ids = given["input_ids"]

    placeholders = torch.zeros_like(ids, dtype=torch.bool)
    for span in report.spans:
        placeholders[span.sample, span.columns] = True
    assert torch.equal(placeholders, ids == 90), "the spans are the placeholders, all of them, each once"
    assert sum(len(s.columns) for s in report.spans) == int((ids == 90).sum()) == report.tokens_total
    assert [(s.sample, s.item) for s in report.spans] == sorted((s.sample, s.item) for s in report.spans)

    methods = list(vtc.parse(setting.pruner, keep=setting.keep, **setting.params))
    lasting = [step for step in report.steps if not step.loan]
    if not any(m.adaptive_count for m in methods):
        media = [m for sample in prompt(family, "ragged").media for m in sample]
        kept = [len(k) for k in lasting[-1].kept] if lasting else [len(s.columns) for s in report.spans]
        asked = [setting.kept(len(s.columns)) for s in report.spans]
        assert setting.counts(kept, media) == setting.counts(asked, media)
    for step in report.steps:
        for kept in step.kept:
            assert torch.equal(kept, kept.unique()), "sorted and unique"
    for earlier, later in zip(report.steps, report.steps[1:], strict=False):
        assert later.loan or all(
            set(b.tolist()) <= set(a.tolist()) for a, b in zip(earlier.kept, later.kept, strict=True)
        )
    assert report.tokens_kept == (sum(len(k) for k in lasting[-1].kept) if lasting else report.tokens_total)

    hidden = hidden_per_layer(report, *ids.shape, len(layers))
    visible = (placeholders & ~hidden).sum((1, 2)).float()
    assert report.mean_tokens_per_layer == pytest.approx(visible.mean().item())

    window = getattr(text_model(model).config, "sliding_window", None)
    for i, physical in enumerate(pruned.physical):
        real = (given["attention_mask"].bool() & ~hidden[i]).sum(1).max().item()
        full = ids.shape[1] if not hidden[i].any() else real
        sliding = getattr(layers[i].self_attn, "sliding_window", window)
        assert physical == (min(full, sliding - 1) if sliding else full), f"layer {i}"

    change = (pruned.generated.logits[:, 0] - plain.generated.logits[:, 0]).abs().amax(-1)
    touched = {s.sample for s, k in zip(report.spans, report.steps[-1].kept, strict=True) if len(k) < len(s.columns)}
    for sample in range(len(ids)):
        assert (change[sample] > 1e-3) == (sample in touched), "pruned samples differ from unpruned, others don't"


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_tokens_are_the_averages_of_what_they_replace(family: str) -> None:
    """The reference is given the merged vectors; here they are checked against the untouched model's features."""
    setting = Setting("pool", 0.25)
    model, given = tiny(family), prompt(family, "one").inputs
    seen: dict[str, torch.Tensor] = {}

    def look(_: torch.nn.Module, args: tuple) -> None:
        seen.setdefault("states", args[0])

    handle = text_model(model).layers[0].register_forward_pre_hook(look)
    model(**given, use_cache=False)
    handle.remove()
    before = seen.pop("states")
    pruned = outcome(setting, family, "one")
    where, merged = pruned.vectors[0]
    span_columns = torch.cat([s.columns for s in pruned.report.spans])
    # every merged vector is a convex mean: all of them together lie in the features' range, and the text is untouched
    low, high = before[0, span_columns].amin(0), before[0, span_columns].amax(0)
    assert (merged >= low - 1e-5).all()
    assert (merged <= high + 1e-5).all()
    assert not torch.allclose(merged, before[where], atol=1e-3)
    assert int(where.sum()) == len(merged) == pruned.report.tokens_kept
