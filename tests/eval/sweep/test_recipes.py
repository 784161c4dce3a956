"""Recipes: every file can be read, and a sweep that follows one shows what it measured beside what was published."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from bench_world import TOKENS, world
from rich.console import Console

import vtc
from vtc.eval.bench import BenchOptions, run_bench
from vtc.eval.reports.measured_beside_published import averaged_tasks, figure_of, published_table, task_of
from vtc.eval.statistics.cell_summary import CellSummary
from vtc.eval.statistics.intervals import Interval
from vtc.eval.sweep.paper_recipes import list_recipes, load_recipe, recipe_folder
from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.vlm.pruning_settings import make_cell

TASKS = TaskSet("data", "1", "", ("gqa", "MMBench-CN", "other"), (), {})
TINY: dict[str, Any] = {
    "method": "fastv",
    "model": "owner/model",
    "pruner": "fastv(layer=1)",
    "cells": [{"keep": 8, "label": "8"}, {"keep": 0.25, "label": "25%"}],
    "published": {
        "Color": {"unpruned": 61.9, "8": 60.1, "25%": 50.0},
        "MME": {"unpruned": 1862, "8": 1836},
        "Average, % of unpruned": {"unpruned": 100, "8": 98.5, "25%": 90.0},
    },
    "source": "Table 1",
    "notes": ["a note"],
}


def write(folder: Path, name: str = "mine", **changes: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_of_ours(name):
    recipe = load_recipe(name)
    assert recipe.method in vtc.list_pruners()
    assert name.startswith(f"{recipe.method}-")
    assert recipe.model.count("/") == 1
    for keep in recipe.cells.values():
        pipeline = vtc.parse(recipe.pruner, keep=keep)
        assert recipe.method in [pruner.name for pruner in pipeline]
        assert all(stop.keep is not None for pruner in pipeline for stop in pruner.stops(32))
    assert recipe.published
    for row in recipe.published.values():
        assert set(row) & set(recipe.cells)
        assert row.get("unpruned", 1) > 0
    assert recipe.source
    assert "arXiv" in recipe.source or "arXiv" in "".join(recipe.notes)


def test_no_entry_of_ours_is_written_twice():
    """YAML takes the last of two equal keys without a word."""
    for name in list_recipes():
        text = (recipe_folder() / f"{name}.yaml").read_text()
        rows = [line for line in text.splitlines() if line.startswith("  ") and ": {" in line]
        recipe = load_recipe(name)
        assert len(rows) == len(recipe.published), name
        assert text.count("label:") == len(recipe.cells), name


BROKEN = {
    "it lacks 'source'": {k: v for k, v in TINY.items() if k != "source"},
    "holds no mapping": ["a list"],
    "an entry 'speed'": {**TINY, "speed": 3},
    "unknown pruner 'fastw'": {**TINY, "pruner": "fastw"},
    "number for '9'": {**TINY, "published": {"GQA": {"9": 1.0}}},
    "does not say what to keep": {**TINY, "cells": [{"keep": None, "label": "8"}], "published": {}},
    "could not convert": {**TINY, "published": {"GQA": {"8": "high"}}},
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_file_that_is_no_recipe_is_told(message: str, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(BROKEN[message]))
    with pytest.raises(ValueError, match=r"mine\.yaml is no recipe: .*" + message):
        load_recipe(str(path))


def test_what_is_not_yaml_is_told(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("a: [1,")
    with pytest.raises(ValueError, match="is not valid YAML"):
        load_recipe(str(tmp_path / "mine.yaml"))
    with pytest.raises(ValueError, match="no such file"):
        load_recipe(str(tmp_path / "other.yaml"))


def test_benchmarks_are_tasks_of_the_same_name_in_any_case():
    assert task_of("GQA", TASKS) == "gqa"
    assert task_of("mmbench-cn", TASKS) == "MMBench-CN"
    assert task_of("MMBench", TASKS) is None
    public = replace(TASKS, tasks=("mmbench_cn", "mmbench_en", "scienceqa_img", "lmms:pope"))
    assert [task_of(name, public) for name in ("MMBench-CN", "MMBench", "ScienceQA", "POPE", "SEED")] == [
        "mmbench_cn", "mmbench_en", "scienceqa_img", "lmms:pope", None,
    ]  # fmt: skip


def test_what_is_measured_is_the_figure_that_papers_print():
    kinds = {"pope": "pope", "mme": "mme", "ocrbench": "ocrbench", "gqa": "exact_match"}
    questions = tuple(Question(task, task, "i", "?", "yes", metric=kind) for task, kind in kinds.items())
    tasks = replace(TASKS, tasks=tuple(kinds), questions=questions)
    official = {
        "pope": {"f1": 0.8, "accuracy": 0.9}, "mme": {"mme_score": 1500.0}, "ocrbench": {"ocrbench_score": 297.0},
        "gqa": {"accuracy": 0.6},
    }  # fmt: skip
    accuracy = {"pope": 0.9, "mme": 0.7, "ocrbench": 0.297, "gqa": 0.6}
    cell = CellSummary(
        "a", None, "a", 1, True, accuracy, Interval(0, 0, 0), None, None, 1, 1, 1, 1, official=official
    )  # fmt: skip
    assert [figure_of(cell, task, tasks) for task in kinds] == pytest.approx([80, 1500, 297, 60])


def test_an_average_is_over_the_published_benchmarks_that_are_there(tmp_path: Path):
    some = {"GQA": {"8": 1.0}, "MME": {"8": 1.0}, "Average": {"8": 1.0}}
    assert averaged_tasks(load_recipe(str(write(tmp_path, published=some))), TASKS) == ["gqa"]
    # nothing was published one by one: all that was measured
    assert averaged_tasks(load_recipe(str(write(tmp_path, published={"Average": {"8": 1.0}}))), TASKS) == [
        "gqa",
        "MMBench-CN",
        "other",
    ]


def shown(table: Any) -> str:
    console = Console(width=100, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def follow(path: Path, out: Path, **more: Any) -> tuple[str, dict[str, Any], list[Any]]:
    model, data = world()
    options = {"model": str(model), "data": data, "timing": 0, "max_new_tokens": 3, "limit": 4, "random": False, **more}
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    summary = run_bench(BenchOptions(output=out, recipe=load_recipe(str(path)), **options), console)
    return console.export_text(), json.loads((out / "summary.json").read_text()), summary


def test_measured_stands_beside_published(tmp_path: Path):
    text, about, summary = follow(write(tmp_path), tmp_path / "out", seed=3)
    assert [cell.spec for cell in summary] == ["unpruned", "fastv(keep=8, layer=1)", "fastv(keep=0.25, layer=1)"]
    assert [cell.tokens_kept for cell in summary] == [TOKENS, 8, 4]
    found = about["recipe"]["measured"]
    ours = [100 * cell.accuracy["color"] for cell in summary]
    assert found["Color"] == {"unpruned": ours[0], "8": ours[1], "25%": ours[2]}
    assert "MME" not in found
    assert about["recipe"]["published"]["MME"] == {"unpruned": 1862, "8": 1836}
    average = found.get("Average, % of unpruned")  # none where the model answers nothing right
    assert average is None if ours[0] == 0 else average["8"] == pytest.approx(100 * ours[1] / ours[0])
    assert "60.1 (97.1)" in text
    assert "1836 (98.6)" in text
    assert "not measured" in text
    assert "Not measured, as data has no task of that name: MME." in text
    assert "the recipe's model is owner/model" in text
    assert "Note: a note." in text


def test_a_pipeline_that_says_what_is_kept(tmp_path: Path):
    path = write(
        tmp_path, pruner="sparsevlm(counts=(8, 5, 3), layers=(1, 2, 3), official=True)", method="sparsevlm",
        cells=[{"keep": None, "label": "few"}], published={"exist": {"unpruned": 80, "few": 79}},
    )  # fmt: skip
    text, about, summary = follow(path, tmp_path / "out")
    assert [cell.keep for cell in summary] == [None, None]
    assert summary[1].tokens_kept >= 3
    assert about["recipe"]["cells"] == {"few": None}
    assert set(about["recipe"]["measured"]["exist"]) == {"unpruned", "few"}
    assert "not over the paper's benchmarks" not in text
    assert "79.0 (98.8)" in text


def test_an_average_alone_is_told_to_be_over_other_tasks(tmp_path: Path):
    path = write(tmp_path, published={"Average": {"unpruned": 50, "8": 49}})
    text, about, summary = follow(path, tmp_path / "out")
    assert about["recipe"]["measured"]["Average"]["8"] == pytest.approx(100 * summary[1].mean.value)
    assert "is over color, exist, count, tasks of data, and not over the paper's benchmarks." in " ".join(text.split())


def test_a_recipe_is_followed_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from vtc.commands.main import main

    model, data = world()
    arguments = [
        "bench", "--recipe", str(write(tmp_path)), "--model", str(model), "--data", str(data), "--limit", "2",
        "--output", str(tmp_path / "out"), "--no-timing", "--max-new-tokens", "2", "--workers", "1",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    printed = capsys.readouterr().out
    assert not stop.value.code
    assert "mine: published and measured" in printed
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["recipe"]["name"] == "mine"


def test_the_table_of_every_recipe_of_ours_fits_a_screen():
    for name in list_recipes():
        recipe = load_recipe(name)
        text = shown(published_table(recipe, {}, TASKS))
        assert "…" not in text, name
        for label in recipe.cells:
            assert label in text, name


def test_cells_are_those_of_the_seed_asked_for(tmp_path: Path):
    path = write(tmp_path, pruner="random", method="random")
    assert load_recipe(str(path)).bench_cells(5)["8"] == make_cell("random", 8, 5)
    assert "seed=5" in load_recipe(str(path)).bench_cells(5)["8"].spec
