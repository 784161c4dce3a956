"""One prefill per image gives the answers and the counts of one prefill per question."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from bench_world import TOKENS, world
from versions import TAKES_FEATURES

from vtc.eval.sweep.answer import Answer, answer_plain, answer_shared, select_cache, shares_prefix
from vtc.eval.sweep.sweep_run import pruned
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.vlm.branching import Branching
from vtc.eval.vlm.encode_once import encode
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.prompts import Row, make_row
from vtc.eval.vlm.pruning_settings import make_cell

TEXT_FREE = [
    "random(keep=0.5)",
    "uniform(keep=5)",
    "pool(keep=4)",
    "random(layer=2, keep=3)",
    "uniform(keep=9) + random(layer=3, keep=2)",
]


@pytest.fixture(scope="module")
def groups():
    model, data = world()
    loaded, tasks = load_model(str(model)), load_tasks(data)
    rows = [
        [make_row(loaded.processor, loaded.model.config, tasks.image(q.image_id), q) for q in group]
        for group in tasks.groups()
    ]
    assert len({len(r.ids) for r in rows[0]}) > 1, "the questions must differ in length"
    return loaded, rows


def told(answered: Iterator[list[tuple[Row, Answer]]]) -> dict[str, Answer]:
    """Answers by question."""
    return {row.question.question_id: answer for batch in answered for row, answer in batch}


# where they don't, the benchmark asks every question by itself
encodes_once = pytest.mark.skipif(not TAKES_FEATURES, reason="transformers < 5.18 takes no images encoded before")


@encodes_once
@pytest.mark.parametrize("spec", [None, *TEXT_FREE])
def test_shared_prefix_equals_plain(groups, spec: str | None):
    loaded, rows = groups
    cell = make_cell(spec, None) if spec else make_cell("uniform", 1.0)
    assert not cell.reads_text
    assert shares_prefix(loaded.model)
    with pruned(loaded.model, cell) as model:
        encoded = [encode(model, group[0]) for group in rows]
        shared = told(answer_shared(model, loaded.processor, rows, encoded, 4))
        flat = [row for group in rows for row in group]
        each = [vision for group, vision in zip(rows, encoded, strict=True) for _ in group]
        plain = answer_plain(model, loaded.processor, flat, each, 4)
        alone = [answer_plain(model, loaded.processor, [row], None, 4)[0] for row in flat]
    assert [shared[row.question.question_id] for row in flat] == plain == alone
    assert len({a.text for a in plain}) > 3, "answers that are all the same would prove nothing"


@encodes_once
@pytest.mark.parametrize("spec", TEXT_FREE)
def test_branches_equal_plain(groups, spec: str):
    loaded, rows = groups
    branching = Branching(loaded.model, loaded.processor, 16)
    with pruned(loaded.model, make_cell(spec, None)) as model:
        encoded = [encode(model, group[0]) for group in rows]
        found = told(answer_shared(model, loaded.processor, rows, encoded, 6, branching=branching))
        flat = [row for group in rows for row in group]
        plain = [answer_plain(model, loaded.processor, [row], None, 6)[0] for row in flat]
    assert branching.proved == {"layer" in spec: True}
    assert [found[row.question.question_id] for row in flat] == plain
    assert len({len(a.text) for a in plain}) > 1, "answers must end at different steps"


@encodes_once
def test_unwrapped_model(groups):
    loaded, rows = groups
    encoded = [encode(loaded.model, group[0]) for group in rows]
    flat = [row for group in rows for row in group]
    alone = [answer_plain(loaded.model, loaded.processor, [row], None, 4)[0] for row in flat]
    assert {a.measured.kept for a in alone} == {TOKENS}
    for branching in (None, Branching(loaded.model, loaded.processor, 16)):
        shared = told(answer_shared(loaded.model, loaded.processor, rows, encoded, 4, branching=branching))
        assert [shared[row.question.question_id] for row in flat] == alone


@pytest.mark.parametrize(
    ("spec", "reads"), [("dart", True), ("fastv", True), ("random(layer=2)", False), ("pool", False)]
)
def test_which_methods_read_the_question(spec: str, reads: bool):
    assert make_cell(spec, 0.5).reads_text is reads


def test_selecting_from_a_cache_leaves_it_alone(groups):
    loaded, rows = groups
    with pruned(loaded.model, make_cell("random", 5)) as model, torch.no_grad():
        row = rows[0][0]
        cache = model(input_ids=row.ids[None], **row.vision, use_cache=True).past_key_values
        before = [(layer.keys.clone(), layer.slots.clone()) for layer in cache.layers]
        copy = select_cache(cache, [0, 0, 0])
        model(input_ids=torch.full((3, 2), 7), past_key_values=copy)
    for layer, new, (keys, slots) in zip(cache.layers, copy.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.slots, slots)
        assert new.keys.shape[0] == 3
        assert new.keys.shape[2] == keys.shape[2] + 2
