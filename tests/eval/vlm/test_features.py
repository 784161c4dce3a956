"""Vision features: one run of the tower per image for all cells behind it, signals with them, a bound in bytes."""

from __future__ import annotations

import pytest
import torch
from bench_world import world
from versions import TAKES_FEATURES
from zoo import prompt, tiny

from vtc.eval.sweep.answer import answer_plain
from vtc.eval.tasks.questions import Question
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.vlm.encode_once import RECORD, encoder_inputs
from vtc.eval.vlm.feature_cache import Features, encoder_signals, pruned, size_of
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.prompts import Row, make_row
from vtc.eval.vlm.pruning_settings import UNPRUNED, make_cell

pytestmark = pytest.mark.skipif(not TAKES_FEATURES, reason="transformers < 5.18 takes no images encoded before")
CELLS = [UNPRUNED] + [make_cell(m, 4) for m in ("random", "visionzip", "cls", "prumerge_plus", "fastv", "vispruner")]
IN_TOWER = make_cell("random(at=vision, layer=1)", 4)


@pytest.fixture(scope="module")
def prepared():
    model, data = world()
    loaded, tasks = load_model(str(model)), load_tasks(data)
    groups = tasks.groups()
    rows = [make_row(loaded.processor, loaded.model.config, tasks.visuals(g[0]), g[0]) for g in groups]
    return loaded, rows


def test_one_run_of_the_tower_serves_every_method_behind_it(prepared):
    loaded, rows = prepared
    features = Features(loaded.model, [*CELLS, IN_TOWER])
    for cell in CELLS:
        given = [features.get(cell, row) for row in rows]
        with pruned(loaded.model, cell) as model:
            shared = answer_plain(model, loaded.processor, rows, given, 4)
            alone = [answer_plain(model, loaded.processor, [row], None, 4)[0] for row in rows]
        assert shared == alone, cell.spec
    assert features.runs == len(rows)
    own = [features.get(IN_TOWER, row) for row in rows]
    assert features.runs == 2 * len(rows)
    with pruned(loaded.model, IN_TOWER) as model:
        shared = answer_plain(model, loaded.processor, rows, own, 4)
        assert shared == [answer_plain(model, loaded.processor, [row], None, 4)[0] for row in rows]


def test_signals_are_stored_with_the_features(prepared):
    loaded, rows = prepared
    features = Features(loaded.model, CELLS)
    signals = encoder_signals(CELLS)
    assert len(signals) > 3
    record = getattr(features.get(CELLS[1], rows[0]), RECORD)
    assert set(record.signals) == set(signals)


def test_the_limit_holds_and_the_least_recently_used_goes(prepared):
    loaded, rows = prepared
    one = size_of(Features(loaded.model, CELLS).get(CELLS[1], rows[0]))
    assert one > 0
    features = Features(loaded.model, CELLS, limit=2 * one)
    first, second = (features.get(CELLS[1], row) for row in rows[:2])
    assert features.get(CELLS[0], rows[0]) is first
    features.get(CELLS[1], rows[2])  # the second goes
    assert features.bytes <= 2 * one
    assert features.runs == 3
    assert features.get(CELLS[2], rows[0]) is first
    again = features.get(CELLS[2], rows[1])
    assert features.runs == 4
    assert torch.equal(again.pooler_output[0], second.pooler_output[0])
    nothing = Features(loaded.model, CELLS, limit=0)
    nothing.get(CELLS[1], rows[0])
    assert nothing.bytes == 0


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_next", "gemma3"])
def test_given_features_stand_where_the_pixels_would(family: str):
    """Multi-axis positions are laid out by the grids, which the features alone don't tell; newlines stay newlines."""
    model, inputs = tiny(family), dict(prompt(family, "one").inputs)
    ids = inputs.pop("input_ids")[0]
    tokens = {n: inputs.pop(n)[0] for n in ("attention_mask", "token_type_ids", "mm_token_type_ids") if n in inputs}
    row = Row(Question("q", "t", "i", "what?", "a"), ids, tokens, inputs, 0, 0)
    text = {"input_ids": ids[None], **{n: v[None] for n, v in tokens.items()}}
    for cell in (UNPRUNED, make_cell("random", 3)):
        features = Features(model, [UNPRUNED, cell]).get(cell, row)
        with pruned(model, cell) as wrapped, torch.no_grad():
            expected = wrapped(**text, **inputs).logits[0, -1]
            found = wrapped(**text, **encoder_inputs([row], [features], model)).logits[0, -1]
        assert torch.allclose(found, expected, atol=1e-5), cell.spec
