"""Results are kept under everything that they depend on: change any of it and they are computed again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_world import save_data, world
from result_rows import read_all

from vtc.eval.bench import run_bench
from vtc.eval.sweep import fingerprint as module
from vtc.eval.sweep import sweep_run as runner
from vtc.eval.sweep.fingerprint import configuration, files_read
from vtc.eval.sweep.options import BenchOptions
from vtc.eval.tasks.questions import TaskInfo, TaskSet
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.vlm.loading import Loaded, config_hash, load_model
from vtc.eval.vlm.pruning_settings import UNPRUNED, make_cell

State = tuple[BenchOptions, Loaded, TaskSet]


def told(**more: str) -> dict[str, str]:
    return dict.fromkeys((*module.KEYED, "python", "numpy"), "1.0") | more


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> State:
    monkeypatch.setattr(module, "software", told)
    model, data = world()
    return BenchOptions(), load_model(str(model)), load_tasks(data)


def _revision(state: State) -> State:
    return state[0], replace(state[1], identity="org/model@another"), state[2]


def _attention(state: State) -> State:
    state[1].model.set_attn_implementation("eager")  # type: ignore[operator]
    return state


def _dtype(state: State) -> State:
    state[1].model.bfloat16()
    return state


def _template(state: State) -> State:
    state[1].processor.chat_template = state[1].processor.chat_template.replace("USER", "HUMAN") + " "
    return state


def _data(state: State) -> State:
    return state[0], state[1], replace(state[2], fingerprint="another")


def _said_by_the_task(state: State) -> State:
    return state[0], state[1], replace(state[2], info={"color": TaskInfo(max_new_tokens=3)})


def _frames(state: State) -> State:
    return replace(state[0], num_frames=4), state[1], state[2]


def _length(state: State) -> State:
    return replace(state[0], max_new_tokens=5), state[1], state[2]


@pytest.mark.parametrize(
    "change", [_revision, _attention, _dtype, _template, _data, _said_by_the_task, _frames, _length]
)
def test_each_part_of_a_configuration_counts(change: Callable[[State], State], state: State):
    before = config_hash(configuration(*state))
    assert config_hash(configuration(*state)) == before
    assert config_hash(configuration(*change(state))) != before


@pytest.mark.parametrize("package", module.KEYED)
def test_versions_count(package: str, state: State, monkeypatch: pytest.MonkeyPatch):
    before = config_hash(configuration(*state))
    monkeypatch.setattr(module, "software", lambda: told(**{package: "2.0"}))
    assert config_hash(configuration(*state)) != before


def test_what_changes_no_answer_does_not_count(state: State):
    options, loaded, tasks = state
    before = config_hash(configuration(*state))
    others = replace(options, limit=1, workers=4, output=Path("elsewhere"), timing=0, match="flops", cache_bytes=0)
    assert config_hash(configuration(others, loaded, tasks)) == before


def test_files_that_methods_read_count(tmp_path: Path):
    file = tmp_path / "classes.json"
    file.write_text("{}")
    cells = [UNPRUNED, make_cell("uniform", 0.5), make_cell(f"embedlens(classes='{file}')", 0.5)]
    assert files_read(cells[:2]) == {}, "without any the configuration stays as it was"
    before = files_read(cells)
    assert list(before["files"]) == [str(file)]
    assert files_read(cells) == before
    file.write_text("[]")
    assert files_read(cells) != before
    assert files_read([make_cell("embedlens(classes='gone.json')", 0.5)]) == {}


def test_a_model_s_files_are_its_revision(tmp_path: Path):
    copy = tmp_path / "model"
    shutil.copytree(world()[0], copy)
    before = load_model(str(copy)).identity
    assert load_model(str(copy)).identity == before
    (copy / "generation_config.json").write_text('{"repetition_penalty": 1.5}')
    assert load_model(str(copy)).identity != before


def test_results_of_another_version_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    original = runner._answers

    def spy(sweep: Any, cell: Any, *more: Any) -> Any:
        asked.append(cell.spec)
        return original(sweep, cell, *more)

    monkeypatch.setattr(runner, "_answers", spy)
    data = save_data(tmp_path / "data", images=1)
    options = BenchOptions(
        model=str(world()[0]), data=data, output=tmp_path / "out", pruners=["uniform"], keeps=[3], timing=0,
        random=False, max_new_tokens=2,
    )  # fmt: skip
    for versions, computed in ((told(), True), (told(torch="2.0"), True), (told(), False), (told(torch="2.0"), False)):
        asked.clear()
        monkeypatch.setattr(module, "software", lambda versions=versions: versions)
        run_bench(options)
        assert bool(asked) is computed
    rows = read_all(tmp_path / "out" / "results.jsonl")
    assert len({row["config"] for row in rows}) == 2
    assert len(rows) == 2 * 2 * 6
    # a parameter of a method is part of its cell
    asked.clear()
    run_bench(replace(options, pruners=["uniform(layer=1)"]))
    assert set(asked) == {"uniform(keep=3, layer=1)"}
