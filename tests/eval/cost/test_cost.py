"""FLOPs and KV bytes: the formula against torch's counter, with the token counts that the report gives."""

from __future__ import annotations

import pytest
import torch
from bench_world import TOKENS, world
from reference import features_given
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from versions import TAKES_FEATURES

import vtc
from vtc.eval.cost.flops import vision_flops
from vtc.eval.cost.prefill_cost import LMCost, Measured, lm_cost
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.vlm.encode_once import encode, join_outputs
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.prompts import make_row

SPECS = [None, "random(keep=5)", "random(layer=2, keep=5)", "pool(keep=4)", "random(keep=9) + random(layer=3, keep=2)"]


@pytest.fixture(scope="module")
def prepared():
    model, data = world()
    loaded, tasks = load_model(str(model)), load_tasks(data)
    question = tasks.questions[0]
    row = make_row(loaded.processor, loaded.model.config, tasks.image(question.image_id), question)
    return loaded.model, row


@pytest.mark.parametrize("spec", SPECS)
def test_formula_equals_the_counter(prepared, spec: str | None):
    model, row = prepared
    features = join_outputs([encode(model, row)])
    stub = not TAKES_FEATURES  # then the feature method hands them out
    with features_given(model, {"get_image_features": features} if stub else {}):
        if spec:
            vtc.compress(model, spec)
        given = row.vision if stub else {"mm_encoder_outputs": {"image": features}}
        # the fused kernel is unknown to the counter on the CPU
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            output = model(
                input_ids=row.ids[None], attention_mask=row.tokens["attention_mask"][None],
                **given, use_cache=True, logits_to_keep=1,
            )  # fmt: skip
        measured = Measured.from_report(model.vtc.report, 0, 4) if spec else Measured.unpruned(TOKENS, 4)
        vtc.restore(model)
    lengths = [len(row.ids) - TOKENS + n for n in measured.per_layer]
    cost = lm_cost(model)
    counts = counter.get_flop_counts()
    # older transformers makes the angles of the rotary embedding by a matrix product
    angles = sum(sum(flops.values()) for name, flops in counts.items() if name.endswith(".rotary_emb"))
    assert cost.flops(lengths) == counter.get_total_flops() - angles
    held = sum(
        x.numel() * x.element_size() for layer in output.past_key_values.layers for x in (layer.keys, layer.values)
    )
    assert cost.kv_bytes(lengths) == held


def test_counts_per_layer(prepared):
    model, row = prepared
    with vtc.compressed(model, "random(keep=9) + random(layer=3, keep=2)") as wrapped, torch.no_grad():
        wrapped(input_ids=row.ids[None], **row.vision)
        measured = Measured.from_report(wrapped.vtc.report, 0, 4)
    assert measured == Measured(TOKENS, 2, (9, 9, 9, 2))
    assert measured.mean == 29 / 4


def test_by_hand():
    cost = LMCost(linear=(10, 10), attention=(3, 3), kv=(4, 4), head=7, itemsize=2)
    assert cost.flops([2, 1]) == 2 * 2 * 10 + 4 * 4 * 3 + 2 * 10 + 4 * 3 + 2 * 7
    assert cost.kv_bytes([2, 1]) == 24


def test_the_tower_is_counted_and_pruning_inside_it_shows(prepared):
    model, row = prepared
    tower, plain_projector = vision_flops(model, row)
    patches, width, inner, layers = TOKENS, 32, 48, 3
    n = patches + 1
    per_layer = 2 * n * (4 * width * width + 2 * width * inner) + 4 * n * n * width
    projector = 2 * patches * 2 * width * width
    assert tower == 2 * patches * 3 * 14 * 14 * width + layers * per_layer
    assert plain_projector == projector
    with vtc.compressed(model, "random(at=vision, layer=1, keep=4)") as wrapped:
        assert vision_flops(wrapped, row)[0] < tower


def test_mixtures_of_experts_are_refused(prepared):
    model, _ = prepared
    config = model.config.get_text_config()
    config.num_experts = 8
    try:
        with pytest.raises(NotImplementedError, match="mixture-of-experts"):
            lm_cost(model)
    finally:
        del config.num_experts
