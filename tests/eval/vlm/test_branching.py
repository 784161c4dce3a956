"""Questions as branches behind one prefix: only where that is the same, and in rows of bounded width."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from bench_world import world
from versions import TAKES_FEATURES

from vtc.eval.sweep.answer import _heads, answer_plain, answer_shared
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.vlm import branching as module
from vtc.eval.vlm.branching import Branching, _even_rows, columns, length
from vtc.eval.vlm.encode_once import encode
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.prompts import Row, make_row
from vtc.eval.vlm.pruning_settings import UNPRUNED, make_cell
from vtc.eval.vlm.question_branches import Branches, first_logits
from vtc.models.layout.model_parts import locate
from vtc.models.stock.call_arguments import cache_of

pytestmark = pytest.mark.skipif(not TAKES_FEATURES, reason="transformers < 5.18 takes no images encoded before")
LIMIT = 5


@pytest.fixture
def asked():
    model, data = world()
    loaded, tasks = load_model(str(model)), load_tasks(data)
    groups = [
        [make_row(loaded.processor, loaded.model.config, tasks.image(q.image_id), q) for q in group]
        for group in tasks.groups()
    ]
    return loaded, groups


def answers(loaded, groups, branching) -> dict[str, str]:
    encoded = [encode(loaded.model, group[0]) for group in groups]
    batches = answer_shared(loaded.model, loaded.processor, groups, encoded, LIMIT, branching=branching)
    return {row.question.question_id: answer.text for batch in batches for row, answer in batch}


def plain(loaded, groups) -> dict[str, str]:
    rows = [row for group in groups for row in group]
    found = [answer_plain(loaded.model, loaded.processor, [row], None, LIMIT)[0] for row in rows]
    return {row.question.question_id: answer.text for row, answer in zip(rows, found, strict=True)}


def test_few_columns_at_once_give_the_same_answers(asked, monkeypatch: pytest.MonkeyPatch):
    loaded, groups = asked
    runs = []
    real = module.greedy
    monkeypatch.setattr(module, "greedy", lambda *given: runs.append(given[1]) or real(*given))
    wanted = plain(loaded, groups)
    found = []
    for most in (2, 16):  # prompts' worth of columns
        runs.clear()
        assert answers(loaded, groups, Branching(loaded.model, loaded.processor, most)) == wanted
        found.append(len(runs))
    assert found[0] > 2 * found[1]


@pytest.mark.parametrize("wrong", ["positions", "masks"])
def test_a_model_on_which_branches_differ_is_asked_in_turns(asked, monkeypatch: pytest.MonkeyPatch, wrong: str):
    loaded, groups = asked
    real = Branches.logits

    def other(self, ids, owners, places, ends):
        if wrong == "positions":
            return real(self, ids, owners, places + 1, ends)
        return real(self, ids, torch.zeros_like(owners), places, ends)

    monkeypatch.setattr(Branches, "logits", other)
    branching = Branching(loaded.model, loaded.processor, 16)
    assert answers(loaded, groups, branching) == plain(loaded, groups)
    assert branching.proved == {False: False}


@pytest.mark.parametrize(
    ("name", "value", "possible"),
    [("repetition_penalty", 1.2, False), ("min_new_tokens", 3, False), ("suppress_tokens", [5], False),
     ("repetition_penalty", 1.0, True), ("temperature", 0.3, True)],
)  # fmt: skip
def test_what_changes_greedy_answers_is_left_to_generate(asked, name: str, value: object, possible: bool):
    loaded, groups = asked
    setattr(loaded.model.generation_config, name, value)
    branching = Branching(loaded.model, loaded.processor, 16)
    assert branching.possible is possible
    assert answers(loaded, groups, branching) == plain(loaded, groups)


def test_methods_whose_tokens_come_back_are_asked_in_turns(asked):
    branching = Branching(asked[0].model, asked[0].processor, 16)
    assert branching.under(make_cell("pmod", None)) is None
    for cell in (UNPRUNED, make_cell("uniform", 0.5), make_cell("random(layer=2)", 0.5)):
        assert branching.under(cell) is branching


@torch.no_grad()
def test_what_questions_begin_with_in_common_is_run_once(asked, monkeypatch: pytest.MonkeyPatch):
    loaded, groups = asked
    row = groups[0][0]
    output = loaded.model(**_heads(loaded.model, loaded.processor, [row], [encode(loaded.model, row)]), use_cache=True)
    a, b, *rest = row.tail
    questions = [[a, b, *rest], [a, b], [a, b, *rest], [a, a, *rest], [b, b], [b]]
    run = []
    real = Branches.logits
    monkeypatch.setattr(Branches, "logits", lambda self, ids, *more: run.append(ids.numel()) or real(self, ids, *more))

    def logits(asked: list[list[int]]) -> torch.Tensor:
        branches = Branches(locate(loaded.model), cache_of(output), [0], row.prefix, sum(map(len, asked)))
        return first_logits(branches, [asked], 0)[0]

    alone = torch.cat([logits([question]) for question in questions])
    for order in (questions, sorted(questions), questions[::-1]):
        run.clear()
        assert torch.allclose(logits(order), alone[[questions.index(q) for q in order]], atol=1e-4)
        assert run == [columns(order)]
    assert columns(sorted(questions)) == 2 + len(rest) + 1 + len(rest) + 2


def made_up(tokens: list[int], prefix: int = 100) -> list[Row]:
    question, fresh = SimpleNamespace(), itertools.count()
    ids = [torch.tensor([0] * prefix + [next(fresh) for _ in range(n)]) for n in tokens]
    return [Row(question, i, {}, {}, prefix, 90) for i in ids]  # type: ignore[arg-type]


def test_rows_are_even_and_bounded():
    groups = [made_up([3] * 24), made_up([3] * 6), made_up([4, 9])]
    rows = _even_rows(groups, 2, 20)
    assert sorted(length(r) for _, part in rows for r in part) == sorted(length(r) for g in groups for r in g)
    widths = [columns([r.tail for r in part]) for _, part in rows]
    assert max(widths) * len(widths) < 1.5 * sum(widths), "one row an image would be two thirds padding"
    assert all(sum(length(r) + 2 for r in part) <= 100 for _, part in rows)
    # answers that are as long as a prompt are given one by one
    assert {len(part) for _, part in _even_rows(groups, 100, 20)} == {1}
