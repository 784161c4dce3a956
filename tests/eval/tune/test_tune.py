"""``vtc tune`` on the bundled model: what it writes, that a killed run goes on, what it says when nothing qualifies."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from made_up_tuning import questions_about
from result_rows import read_all
from rich.console import Console

import vtc
from vtc.bundled_files import bundled_data, bundled_model_path
from vtc.commands.main import main
from vtc.config import CONFIG_NAME
from vtc.eval.sweep.answer import answer_plain
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.tune import tune_job as tune_run
from vtc.eval.tune.confirm import confirm
from vtc.eval.tune.options import TuneOptions
from vtc.eval.tune.successive_halving import Answered, Rung, Standing
from vtc.eval.tune.tune_job import run_tune
from vtc.eval.tune.tune_report import Found, verdict
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.prompts import make_row
from vtc.pruners import registry

ASKED = ("--pruners", "dart,random", "--keep", "0.5,0.05", "--tasks", "color,exist", "--limit", "40", "--target", "0.8")


def options(out: Path, **more: Any) -> TuneOptions:
    given: dict[str, Any] = {
        "target": 0.8, "pruners": ("dart", "random"), "keeps": (0.5, 0.05), "tasks": ["color", "exist"], "limit": 40,
        "output": out,
    }  # fmt: skip
    return TuneOptions(**{**given, **more})


def run(out: Path, **more: Any) -> tuple[Found, str]:
    text = io.StringIO()
    return run_tune(options(out, **more), Console(file=text, width=160)), " ".join(text.getvalue().split())


def decided(out: Path) -> dict[str, Any]:
    found = json.loads((out / "tune.json").read_text())
    return {name: found[name] for name in ("winner", "verdict", "rungs", "confirmation", "split")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("tune") / "results"
    return out, *run(out)


def test_the_cheapest_that_is_good_enough_is_written(finished):
    out, found, said = finished
    best = found.winner
    assert best is not None
    assert best.low > 0.8
    assert best.spec in said
    assert "Few images: on 10" in said  # one image in five may be spoilt: no spoilt one of ten means little
    report = json.loads((out / "tune.json").read_text())
    assert report["winner"] == best.spec
    assert report["versions"]["vtc"] == vtc.__version__
    last = {s["setting"]: s for s in report["rungs"][-1]["settings"]}
    assert all(s["fate"] != "goes on" for s in last.values() if s["share"] < 0.5)
    confirmed = [t for t in report["confirmation"]["tested_in_this_order"] if t["verdict"] == "confirmed"]
    assert best.cost == min(t["cost"] for t in confirmed)
    assert not set(report["split"]["search"]["images"]) & set(report["split"]["confirmation"]["images"])


def test_the_configuration_loads_and_answers_as_measured(finished):
    out, found, _ = finished
    model = vtc.load(bundled_model_path(), vtc.VTCConfig.from_pretrained(out)).eval()
    spec = " + ".join(map(str, model.vtc.pipeline))
    assert vtc.pipeline_text.format_pipeline(vtc.pipeline_text.parse(spec)) == found.winner.spec
    tasks = load_tasks(bundled_data())
    known = {(r["cell"], r["question_id"]): r["prediction"] for r in read_all(out / "results.jsonl")}
    processor = load_model(None, "cpu").processor
    asked = [q for q in tasks.questions if (found.winner.spec, q.question_id) in known][:5]
    rows = [make_row(processor, model.config, [tasks.image(q.image_id)], q) for q in asked]
    answers = [answer_plain(model, processor, [row], None, 16)[0].text for row in rows]
    assert answers == [known[found.winner.spec, q.question_id] for q in asked]
    assert len(asked) == 5


def test_the_line_that_it_prints_works_as_printed(finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, found, said = finished
    line = re.search(r"To use it: (.*\)\))", said)
    assert line is not None
    monkeypatch.chdir(tmp_path)  # wherever that is
    names: dict[str, Any] = {}
    exec(line[1], names)
    assert vtc.format_pipeline(names["model"].vtc.pipeline) == found.winner.spec


def test_the_line_names_what_has_to_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tune_run, "imported", lambda: ["/there/my.py"])
    line = tune_run.to_use("a/b", tmp_path, "uniform(keep=3)")
    assert line == f"import vtc; model = vtc.load('a/b', vtc.VTCConfig.from_pretrained({str(tmp_path)!r}))"
    vtc.list_pruners()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @vtc.register_pruner("mine")
    @dataclass(kw_only=True)
    class Mine(vtc.Pruner):
        """Mine."""

    line = tune_run.to_use(str(tmp_path), tmp_path, "mine(keep=3)")
    assert line.startswith(f"import vtc; vtc.import_methods('/there/my.py'); model = vtc.load({str(tmp_path)!r}, ")


@pytest.mark.parametrize("limit", [0, 3, 20])
def test_a_limit_that_is_too_small_is_told_before_the_model_is_read(limit: int, tmp_path: Path):
    with pytest.raises(ValueError, match="--limit"):
        run(tmp_path / "out", limit=limit, target=0.98, model="no/such-model")


def test_the_same_command_finds_everything_done(finished):
    out, _, _ = finished
    before, decision = (out / "results.jsonl").read_bytes(), decided(out)
    _, said = run(out)
    assert f"resuming: {len(read_all(out / 'results.jsonl'))} answers were there already" in said
    assert (out / "results.jsonl").read_bytes() == before
    assert decided(out) == decision
    assert sorted(p.name for p in out.iterdir()) == ["results.jsonl", "tune.json", CONFIG_NAME]


def test_a_killed_run_goes_on(finished, tmp_path: Path):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "vtc", "tune", *ASKED, "--output", str(out), "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.time() + 120
        while time.time() < until and process.poll() is None and len(read_all(out / "results.jsonl")) < 40:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    there = {(r["cell"], r["question_id"]) for r in read_all(out / "results.jsonl")}
    whole = {(r["cell"], r["question_id"]) for r in read_all(finished[0] / "results.jsonl")}
    assert 40 <= len(there) < len(whole)
    assert not (out / CONFIG_NAME).exists()
    run(out)
    rows = read_all(out / "results.jsonl")
    assert {(r["cell"], r["question_id"]) for r in rows} == whole
    assert len(rows) == len(whole)
    assert decided(out) == decided(finished[0])


def test_nothing_qualifies(finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "nothing"
    shutil.copytree(finished[0], out)  # with the configuration that an earlier search has found
    asked = [*ASKED, "--pruners", "random", "--keep", "0.05", "--output", str(out), "--workers", "1"]
    with pytest.raises(SystemExit) as stop:
        main(["tune", *asked])
    assert stop.value.code == 1
    assert "Nothing qualifies. None of 1 settings" in " ".join(capsys.readouterr().out.split())
    assert not (out / CONFIG_NAME).exists()
    assert json.loads((out / "tune.json").read_text())["winner"] is None


@pytest.mark.parametrize("by", ["tokens", "prefill"])
def test_cheap_may_mean_something_else(finished, tmp_path: Path, by: str):
    out = tmp_path / by
    shutil.copytree(finished[0], out)
    found, _ = run(out, by=by, keeps=(0.5,))
    costs = {s.spec: s.cost for s in found.rungs[0].standings}
    if by == "tokens":
        assert costs["random(keep=0.5)"] == pytest.approx(0.5)
        assert costs["dart(keep=0.5)"] == pytest.approx(5 / 8)  # all tokens in two of eight layers
    else:
        assert set(json.loads((out / "timing.json").read_text())["prefill_seconds"]) == {"unpruned", *costs}
        times = (out / "timing.json").read_bytes()
        again, _ = run(out, by=by, keeps=(0.5,))
        assert (out / "timing.json").read_bytes() == times
        assert {s.spec: s.cost for s in again.rungs[0].standings} == costs


def test_a_configuration_of_somebody_else_is_left_alone(tmp_path: Path):
    (tmp_path / CONFIG_NAME).write_text("{}")
    with pytest.raises(ValueError, match="did not write"):
        run(tmp_path)
    assert (tmp_path / CONFIG_NAME).read_text() == "{}"


@pytest.mark.parametrize(("lost", "enough"), [(1, True), (6, False)])
def test_too_few_images_and_too_low_a_share_are_told_apart(lost: int, enough: bool):
    questions = questions_about(65, 1, ("a",))
    plain = {q.question_id: 1.0 for q in questions}
    answered = {"only": Answered({q.question_id: float(i >= lost) for i, q in enumerate(questions)}, 0.5)}
    standing = Standing("only", 1.0, 1.0, 0.5, 1.0)
    trialled = confirm([standing], questions, plain, answered, 0.95)
    words = " ".join(verdict(Found(TuneOptions(target=0.95), [Rung(65, 65, 1.0, [standing])], trialled, 65)))
    assert words.startswith("Nothing qualifies. The safest of 1 settings, only, kept")
    assert ("raise --limit" in words, "more images won't help" in words) == (enough, not enough)


BAD = {
    "--target 0 is out of range": ("--target", "0"),
    "--target 1.01 is out of range": ("--target", "1.01"),
    "--target nan is out of range": ("--target", "nan"),
    "--confirm 1 is out of range": ("--confirm", "1"),
    "--confidence 0.2 is out of range": ("--confidence", "0.2"),
    "--eta 1 is out of range": ("--eta", "1"),
    "--by 'money' is unknown: allowed are flops, prefill, tokens": ("--by", "money"),
    "--pruners is empty": ("--pruners", ","),
    "Did you mean 'dart'": ("--pruners", "darts"),
    "no parameter 'pivot'": ("--pruners", "dart(pivot=3)"),
    "unknown task 'colour'": ("--tasks", "colour"),
    "no such folder": ("--data", "nowhere"),
    "leaves a part of 5 images": ("--limit", "20", "--tasks", "color,exist", "--target", "0.7"),
    "--target 0.999 can't be confirmed on": ("--limit", "40", "--target", "0.999"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line(message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["tune", "--output", str(tmp_path / "out"), *BAD[message]])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
