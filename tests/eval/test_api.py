"""``vtc.eval`` for scripts: the docs' notebook runs, it gives what ``vtc bench`` gives, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from bench_world import world
from places import ROOT

import vtc.eval
from vtc.eval import Answers, load_tasks, paired_difference, report, run_sweep, summarise
from vtc.eval.bench import run_bench
from vtc.eval.sweep.options import BenchOptions
from vtc.eval.vlm.loading import load_model

PRUNERS = ("dart(layer=1)", "random")


def sweep(out: Path, **more: Any) -> Answers:
    model, data = world()
    given: dict[str, Any] = {"model": str(model), "max_new_tokens": 3, "seeds": 2, "progress": False}
    return run_sweep(load_tasks(data), PRUNERS, [3], folder=out, **(given | more))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return sweep(tmp_path_factory.mktemp("api"))


def test_every_name_is_there_and_explained() -> None:
    for name in vtc.eval.__all__:
        assert getattr(vtc.eval, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        vtc.eval.nothing  # noqa: B018


def test_the_notebook_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    code = re.search(r"<!-- notebook -->\n```python\n(.*?)```", (ROOT / "docs" / "notebook.md").read_text(), re.S)
    assert code is not None
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(code[1].replace("limit=20", "limit=2"), {})
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("dart 25%: ") and "% right; " in line for line in printed)
    assert any(re.fullmatch(r"dart - random: [+-]\d+\.\d points, p = \d\.\d+, \d+ questions", line) for line in printed)
    assert printed[-1] == "first-sweep/report.html"
    assert (tmp_path / printed[-1]).read_text().lower().startswith("<!doctype html>")


def test_it_is_what_vtc_bench_gives(answers: Answers, tmp_path: Path) -> None:
    model, data = world()
    options = BenchOptions(
        model=str(model), data=data, pruners=PRUNERS, keeps=[3], max_new_tokens=3, seeds=2, timing=0, output=tmp_path
    )
    theirs, ours = run_bench(options), summarise(answers)
    assert [line.flat() for line in ours] == [line.flat() for line in theirs]
    page = report(answers)
    assert page == answers.folder / "report.html"
    for file in ("report.html", "report.md", "summary.csv", "pareto.png"):
        assert (answers.folder / file).stat().st_size > 0
    assert (answers.folder / "summary.csv").read_text() == (tmp_path / "summary.csv").read_text()


def test_a_comparison_is_the_mean_of_the_paired_differences(answers: Answers) -> None:
    assert {"unpruned", "dart(layer=1) 3", "random 3"} <= answers.lines().keys()
    found = paired_difference(answers, "random 3", "dart(layer=1) 3")
    ours, theirs = (answers.lines()[name].scores for name in ("random 3", "dart(layer=1) 3"))
    mean = sum(ours[q] - theirs[q] for q in ours) / len(ours)
    assert found.n == len(ours) == 18
    assert found.difference.value == pytest.approx(mean)
    assert found.difference.low <= mean <= found.difference.high
    with pytest.raises(ValueError, match=r"no line 'dart 25%'; this sweep has: unpruned, .*dart\(layer=1\) 3"):
        paired_difference(answers, "dart 25%")


def test_what_was_answered_is_not_asked_again(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtc.eval.sweep.sweep_run._answers", lambda *_: pytest.fail("it is answered"))
    assert sweep(answers.folder).rows == answers.rows


def test_a_model_in_memory(answers: Answers, tmp_path: Path) -> None:
    loaded = load_model(str(world()[0]))
    with pytest.raises(ValueError, match="needs its processor"):
        sweep(tmp_path, model=loaded.model)
    ours = sweep(tmp_path, model=loaded.model, processor=loaded.processor)
    same = [[row["prediction"] for row in found.rows.values()] for found in (ours, answers)]
    assert sorted(same[0]) == sorted(same[1])
    assert not hasattr(loaded.model, "vtc")
    before = ours.job.loaded.identity
    next(loaded.model.parameters()).data += 1  # another model, whose answers are asked for anew
    assert sweep(tmp_path, model=loaded.model, processor=loaded.processor).job.loaded.identity != before
    with vtc.compressed(loaded.model, "uniform", keep=3), pytest.raises(ValueError, match=r"vtc\.restore"):
        sweep(tmp_path, model=loaded.model, processor=loaded.processor)


def test_one_method_and_one_keep_need_no_list(answers: Answers) -> None:
    model, data = world()
    given = {"model": str(model), "max_new_tokens": 3, "seeds": 2, "progress": False, "random": False}
    one = run_sweep(load_tasks(data), "dart(layer=1)", 3, folder=answers.folder, **given)
    assert list(one.lines()) == ["unpruned", "dart(layer=1) 3"]


def test_tasks_by_name_folder_and_limit() -> None:
    assert load_tasks().name == "bundled"
    assert set(load_tasks(limit=1).counts.values()) == {1}
    assert load_tasks(["color", "count"], limit=2).tasks == ("color", "count")
    assert len(load_tasks(world()[1]).questions) == 18


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_tasks("nowhere"), "unknown task 'nowhere'. There is: "),
        (lambda: load_tasks(limit=0), "limit=0 is out of range"),
        (lambda: sweep(Path("x"), seed_count=2), "run_sweep has no option 'seed_count'; there is: "),
        (lambda: sweep(Path("x"), limit=2), "run_sweep has no option 'limit'"),
        (lambda: sweep(Path("x"), match="cost"), "--match 'cost' is unknown"),
    ],
)
def test_mistakes_are_one_line(call: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError), match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
