"""Second questions on the cache that a first one was pruned for: the same chat, asked in two turns."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_world import save_model, world
from result_rows import read_all
from rich.console import Console
from tiny_qwen import save_qwen

import vtc
from vtc.bundled_files import bundled_data
from vtc.eval.bench import BenchOptions, run_bench
from vtc.eval.sweep import second_questions as second
from vtc.eval.sweep.results_store import AnswerStore
from vtc.eval.sweep.sweep_run import Sweep
from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.vlm.loading import Loaded, load_model
from vtc.eval.vlm.prompts import make_row, message_inputs
from vtc.eval.vlm.pruning_settings import UNPRUNED, make_cell
from vtc.eval.vlm.second_turn import behind_first


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_model(None, "cpu")


@pytest.fixture(scope="module")
def tasks() -> TaskSet:
    return load_tasks(bundled_data()).subset(None, 4)


def chat(tasks: TaskSet, pair: second.Pair) -> list[dict[str, object]]:
    """The two turns as a user would write them."""
    pictures = [{"type": "image", "image": picture} for picture in tasks.visuals(pair.first)]
    return [
        {"role": "user", "content": [*pictures, {"type": "text", "text": pair.first.question}]},
        {"role": "assistant", "content": [{"type": "text", "text": pair.first.answer}]},
        {"role": "user", "content": [{"type": "text", "text": pair.second.question}]},
    ]


def test_pairs_are_the_same_ones_and_of_two_tasks(tasks: TaskSet) -> None:
    pairs = second.pairs_of(tasks, 3)
    assert pairs == second.pairs_of(tasks, 3)
    assert len(pairs) == 3
    assert len({pair.first.image_id for pair in pairs}) == 3
    for pair in pairs:
        assert pair.first.image_id == pair.second.image_id
        assert pair.first != pair.second
    alone = replace(tasks, questions=(tasks.questions[0],))
    assert second.pairs_of(alone, 3) == []


def test_the_turns_are_those_of_the_chat(loaded: Loaded, tasks: TaskSet) -> None:
    for pair in second.pairs_of(tasks, 4):
        row = make_row(loaded.processor, loaded.model.config, tasks.visuals(pair.first), pair.first)
        behind = behind_first(loaded.processor, pair.first.question, pair.first.answer, pair.second.question)
        whole = message_inputs(loaded.processor, chat(tasks, pair))["input_ids"][0]
        assert torch.equal(torch.cat([row.ids, behind]), whole)


def test_unpruned_answers_are_those_of_the_whole_chat(loaded: Loaded, tasks: TaskSet, tmp_path: Path) -> None:
    sweep = Sweep(loaded, tasks, [UNPRUNED, make_cell("fastv", 1.0), make_cell("uniform", 0.05)])
    pairs, counted = second.pairs_of(tasks, 4), []
    assert second.can_ask(sweep, pairs) == ""
    with AnswerStore(tmp_path / "second.jsonl", "config") as store:
        second.ask_second(sweep, pairs, store, counted.append)
        rows = {(cell, name): row for (cell, name), row in store.rows.items()}
        assert sum(counted) == len(rows) == len(pairs) * 3
        assert all((cell.spec, pair.name) in store for cell in sweep.cells for pair in pairs)
    for pair in pairs:
        inputs = message_inputs(loaded.processor, chat(tasks, pair))
        with torch.no_grad():
            out = loaded.model.generate(**inputs, max_new_tokens=16, do_sample=False)
        want = loaded.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        plain, all_kept = rows["unpruned", pair.name], rows["fastv(keep=1.0)", pair.name]
        assert plain["prediction"] == all_kept["prediction"] == want.strip()
        assert plain["visual_kept"] == plain["visual_total"] == 576
        assert rows["uniform(keep=0.05)", pair.name]["visual_kept"] == 29


def test_a_sweep_tells_them_and_goes_on(tmp_path: Path) -> None:
    model, data = world()
    options = BenchOptions(
        model=str(model), data=data, output=tmp_path, pruners=["fastv(layer=1)"], keeps=[0.25], seeds=1,
        random=False, timing=0, max_new_tokens=3, second=2,
    )  # fmt: skip
    for _ in range(2):
        cells = {cell.method: cell for cell in run_bench(options, Console(quiet=True))}
        rows = read_all(tmp_path / "second.jsonl")
        assert len(rows) == 2 * 2
        assert {row["cell"] for row in rows} == {"unpruned", "fastv(keep=0.25, layer=1)"}
    hidden = cells["fastv(layer=1)"].hidden
    assert hidden is not None
    assert (hidden.second_n, hidden.pointing_n) == (2, 0)
    assert hidden.second_difference is not None
    assert not {row["question_id"] for row in rows} & {r["question_id"] for r in read_all(tmp_path / "results.jsonl")}
    assert "## What a score hides" in (tmp_path / "report.md").read_text()
    stored = json.loads((tmp_path / "summary.json").read_text())["cells"][0]["hidden"]
    assert stored["second_n"] == 2
    none = replace(options, output=tmp_path / "none", second=0)
    assert all(cell.hidden is not None and cell.hidden.second_n == 0 for cell in run_bench(none, Console(quiet=True)))
    assert not (tmp_path / "none" / "second.jsonl").exists()


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Positions of three axes: where the next token stands is kept outside the cache."""
    return load_model(str(save_qwen(tmp_path_factory.mktemp("qwen"))), "cpu")


def test_positions_of_three_axes_go_on_behind_a_first_turn(qwen: Loaded, tmp_path: Path) -> None:
    tasks = load_tasks(world()[1])
    spec = "uniform(keep=2)"
    sweep = Sweep(qwen, tasks, [UNPRUNED, make_cell("fastv", 1.0), make_cell("uniform", 2)])
    pairs = second.pairs_of(tasks, 2)
    assert second.can_ask(sweep, pairs) == ""
    with AnswerStore(tmp_path / "second.jsonl", "config") as store:
        second.ask_second(sweep, pairs, store)
        rows = dict(store.rows)
    for pair in pairs:
        inputs = message_inputs(qwen.processor, chat(tasks, pair))
        for name, pruned in (("unpruned", False), ("fastv(keep=1.0)", False), (spec, True)):
            with torch.no_grad(), vtc.compressed(qwen.model, spec) if pruned else nullcontext():
                out = qwen.model.generate(**inputs, max_new_tokens=sweep.limit(pair.second), do_sample=False)
            want = qwen.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
            assert rows[name, pair.name]["prediction"] == want.strip()
        assert rows[spec, pair.name]["visual_kept"] == 2 < rows[spec, pair.name]["visual_total"]


def test_who_loses_its_place_between_two_turns_is_not_asked(qwen: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, first = load_tasks(world()[1]), second._first_turn

    def forgetful(model: Any, *given: Any) -> Any:
        cache = first(model, *given)
        model.model.rope_deltas += 5
        return cache

    monkeypatch.setattr(second, "_first_turn", forgetful)
    why = second.can_ask(Sweep(qwen, tasks, [UNPRUNED]), second.pairs_of(tasks, 1))
    assert "answers otherwise on the cache of a first turn" in why


def test_who_can_not_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = load_model(str(save_model(tmp_path / "model")), "cpu")
    asked = [Question(f"q{i}", f"t{i}", "a", "what is it?", "red") for i in range(2)]
    sweep = Sweep(tiny, TaskSet("data", "1", "", ("t0", "t1"), tuple(asked), {}), [UNPRUNED])
    assert "two questions" in second.can_ask(sweep, [])
    monkeypatch.setattr(second, "reuses_encoder", lambda model: False)
    assert "does not take its vision tower's output back" in second.can_ask(sweep, [second.Pair(*asked)])
    monkeypatch.undo()
    anew = "{{ messages|length }}{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
    monkeypatch.setattr(tiny.processor, "chat_template", anew)
    assert "chat template writes a first question otherwise" in second.can_ask(sweep, [second.Pair(*asked)])
