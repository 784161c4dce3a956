"""Layers in front of a method's first choice run once per image: the same answers, fewer columns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench_world import TOKENS, world
from torch import nn
from versions import TAKES_FEATURES

from vtc.eval.sweep.answer import answer_behind, answer_plain, prefix_states
from vtc.eval.sweep.sweep_run import pruned
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.vlm.encode_once import encode
from vtc.eval.vlm.layers_before_choice import layers_before_choice
from vtc.eval.vlm.loading import Loaded, load_model
from vtc.eval.vlm.prompts import Row, make_row
from vtc.eval.vlm.pruning_settings import make_cell
from vtc.models.layout.model_parts import locate

# how many of four layers
COUNTS = {
    "fastv(keep=3)": 2,
    "fastv(keep=0.5, layer=1)": 1,
    "fastv(keep=9, layer=2) + random(keep=2, layer=3)": 2,
    "dart(keep=5)": 2,
    "dart(keep=0.25, layer=3)": 3,
    "dart(keep=5, layer=2, variant='angelslim')": 2,
    "pyramiddrop(keep=0.5)": 1,
    "transprune(layers=(2, 3), ratios=(0.5, 0.25))": 1,
    "sparsevlm(keep=0.5)": 0,
    "uniform(keep=9) + fastv(keep=3)": 0,
    "todre_diversity(keep=9) + fastv(keep=3)": 0,
}


@pytest.fixture(scope="module")
def asked() -> tuple[Loaded, list[list[Row]]]:
    model, data = world()
    loaded, tasks = load_model(str(model)), load_tasks(data)
    rows = [
        [make_row(loaded.processor, loaded.model.config, tasks.image(q.image_id), q) for q in group]
        for group in tasks.groups()
    ]
    return loaded, rows


@pytest.mark.parametrize("spec", COUNTS)
def test_how_many_layers(asked: Any, spec: str):
    assert layers_before_choice(make_cell(spec, None), asked[0].model) == COUNTS[spec]


def test_no_layer_under_masks_that_can_not_be_cut(asked: Any):
    model = asked[0].model
    model.set_attn_implementation("flex_attention")
    try:
        assert layers_before_choice(make_cell("fastv", 3), model) == 0
    finally:
        model.set_attn_implementation("sdpa")


class Widths:
    """Columns that the attention of each layer was given, wherever there were several."""

    def __init__(self, model: nn.Module):
        self.seen: list[set[int]] = []
        self.handles = []
        for layer in locate(model).layers:
            self.seen.append(set())
            hook = self.note(self.seen[-1])
            self.handles.append(layer.self_attn.register_forward_pre_hook(hook, with_kwargs=True))

    @staticmethod
    def note(found: set[int]) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            width = kwargs["hidden_states"].shape[1]
            if width > 1:
                found.add(width)

        return hook


@pytest.mark.skipif(not TAKES_FEATURES, reason="transformers < 5.18 takes no images encoded before")
@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("spec", [spec for spec, count in COUNTS.items() if count])
def test_answers_are_those_of_whole_prefills(asked: Any, spec: str, kind: str):
    loaded, groups = asked
    cell, model = make_cell(spec, None), loaded.model
    model.set_attn_implementation(kind)
    try:
        encoded = [encode(model, group[0]) for group in groups]
        flat = [row for group in groups for row in group]
        with pruned(model, cell) as wrapped:
            plain = [answer_plain(wrapped, loaded.processor, [row], None, 4)[0] for row in flat]
        states = prefix_states(model, loaded.processor, groups, encoded, COUNTS[spec])
        widths = Widths(model)
        with pruned(model, cell) as wrapped:
            batches = list(answer_behind(wrapped, loaded.processor, groups, encoded, states, 4))
    finally:
        model.set_attn_implementation("sdpa")
        for handle in widths.handles:
            handle.remove()
    found = {row.question.question_id: answer for batch in batches for row, answer in batch}
    assert [found[row.question.question_id] for row in flat] == plain
    assert len({answer.text for answer in plain}) > 3, "answers that are all the same would prove nothing"
    behind = {len(row.ids) - row.prefix for row in flat}
    assert widths.seen[: COUNTS[spec]] == [behind] * COUNTS[spec]
    assert all(min(seen) > TOKENS // 8 + min(behind) - 1 for seen in widths.seen[COUNTS[spec] :])
    assert not any("forward" in vars(layer) for layer in locate(model).layers)


@pytest.mark.skipif(not TAKES_FEATURES, reason="transformers < 5.18 takes no images encoded before")
def test_other_calls_run_as_ever(asked: Any):
    loaded, groups = asked
    model, row = loaded.model, groups[0][0]
    encoded = [encode(model, group[0]) for group in groups]
    states = prefix_states(model, loaded.processor, groups, encoded, 2)
    inputs = {"input_ids": row.ids[None], **row.vision}
    text = {"input_ids": torch.full((1, len(row.ids) - 1), 7)}
    with torch.no_grad():
        alone, words = model(**inputs).logits, model(**text).logits
        with states.stand_in([0], len(row.ids)):
            assert torch.equal(model(**text).logits, words)  # another width
            assert torch.equal(model(**inputs, use_cache=False).logits, alone)  # without a cache
            cached = model(**inputs, use_cache=True)
            assert torch.allclose(cached.logits[:, row.prefix :], alone[:, row.prefix :], atol=1e-5)
            step = {"input_ids": torch.full((1, 1), 7), "past_key_values": cached.past_key_values}
            more = model(**step).logits
        whole = model(input_ids=torch.cat([row.ids[None], torch.full((1, 1), 7)], 1), **row.vision).logits
    assert torch.allclose(more[:, -1], whole[:, -1], atol=1e-5)
