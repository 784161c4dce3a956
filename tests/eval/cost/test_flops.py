"""FLOPs by part, counted on fake tensors: against the formula, and against the counter on a real run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from zoo import FAMILIES, prompt, tiny

from vtc.eval.cost.flops import LMFlops, count_flops, counting, vision_flops
from vtc.eval.cost.prefill_cost import Measured, lm_cost
from vtc.eval.tasks.questions import Question
from vtc.eval.vlm.encode_once import encode
from vtc.eval.vlm.feature_cache import pruned
from vtc.eval.vlm.prompts import Row
from vtc.eval.vlm.pruning_settings import UNPRUNED, make_cell

QUESTION = Question("q", "t", "i", "what?", "a")


def row_of(family: str) -> Row:
    inputs = dict(prompt(family, "one").inputs)
    ids = inputs.pop("input_ids")[0]
    tokens = {n: inputs.pop(n)[0] for n in ("attention_mask", "token_type_ids", "mm_token_type_ids") if n in inputs}
    return Row(QUESTION, ids, tokens, inputs, 0, 0)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llava_next"])
def test_layers_on_fake_tensors_equal_the_formula(family: str):
    model = tiny(family)
    weights = {name: p.data_ptr() for name, p in model.named_parameters()}
    counted, formula = LMFlops(model), lm_cost(model)
    depth = formula.depth
    for lengths in ([30] * depth, [30] * (depth - 1) + [7], [12] + [5] * (depth - 1)):
        assert counted.prefill(lengths) + counted.head == formula.flops(lengths)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == weights, "the weights are back"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_tower_on_fake_tensors_equals_a_real_run(family: str):
    model, row = tiny(family), row_of(family)
    with counting() as counter:
        encode(model, row)
    tower, projector = vision_flops(model, row)
    assert tower + projector == counter.get_total_flops()
    assert tower > 0
    assert projector > 0
    with torch.no_grad():  # and it still runs
        assert not isinstance(encode(model, row).pooler_output[0], torch._subclasses.FakeTensor)


def test_parts_of_a_cell():
    model, row = tiny("llava"), row_of("llava")
    formula = lm_cost(model)
    lengths = [len(row.ids)] * formula.depth
    lm = LMFlops(model)
    plain = count_flops(model, UNPRUNED, row, lengths, lm)
    assert plain.lm + plain.head == formula.flops(lengths)
    short = count_flops(model, make_cell("random", 3), row, [9] * formula.depth, lm, plain)
    assert (short.vision, short.projector, short.head) == (plain.vision, plain.projector, plain.head)
    assert short.lm < plain.lm
    inside = count_flops(model, make_cell("random(at=vision, layer=1)", 3), row, lengths, lm)
    assert inside.vision < plain.vision


def test_what_needs_values_really_runs(monkeypatch: pytest.MonkeyPatch):
    model, row = tiny("llava"), row_of("llava")
    expected = vision_flops(model, row)
    get = model.base_model.get_image_features
    seen: list[bool] = []

    def reading(pixel_values: torch.Tensor, **more: Any) -> Any:
        seen.append(bool(pixel_values.sum() != 12345))
        return get(pixel_values, **more)

    monkeypatch.setattr(model.base_model, "get_image_features", reading)
    assert vision_flops(model, row) == expected
    assert seen == [True]
    with pruned(model, UNPRUNED) as plain:
        assert plain is model


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_all_parts_together_are_what_a_real_prefill_counts(family: str):
    """On every family: tower, projector, layers and output layer on fake tensors, the formula, and a forward."""
    model, row = tiny(family), row_of(family)
    formula = lm_cost(model)
    lengths = [len(row.ids)] * formula.depth
    parts = count_flops(model, UNPRUNED, row, lengths)
    assert parts.lm + parts.head == formula.flops(lengths)
    text = {"input_ids": row.ids[None], **{name: t[None] for name, t in row.tokens.items()}}
    with counting() as counter:
        model(**text, **row.vision, use_cache=True, logits_to_keep=1)
    angles = sum(sum(f.values()) for name, f in counter.get_flop_counts().items() if name.endswith(".rotary_emb"))
    assert parts.vision + parts.projector + parts.lm + parts.head == counter.get_total_flops() - angles


@pytest.mark.parametrize("spec", ["unpruned", "random(keep=3)", "random(layer=2, keep=3)"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_kv_bytes_of_a_real_cache(family: str, spec: str):
    """Layers with a sliding window hold no more than it."""
    model, row = tiny(family), row_of(family)
    cost, n = lm_cost(model), len(row.ids)
    text = {"input_ids": row.ids[None], **{name: t[None] for name, t in row.tokens.items()}}
    with pruned(model, UNPRUNED if spec == "unpruned" else make_cell(spec, None)) as wrapped, torch.no_grad():
        cache = wrapped(**text, **row.vision, use_cache=True).past_key_values
        lengths = [n] * cost.depth
        if spec != "unpruned":
            measured = Measured.from_report(wrapped.vtc.report, 0, cost.depth)
            lengths = [n - measured.total + kept for kept in measured.per_layer]
    held = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
    assert cost.kv_bytes(lengths) == held
