"""``vtc bench`` on tasks of every source, and what it does with rows that can't be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_world import png, world
from public_data import write, write_frames
from result_rows import read_all

from vtc.commands.main import main
from vtc.eval.sweep.asked_questions import asked_questions, load_asked
from vtc.eval.sweep.options import RunOptions
from vtc.eval.sweep.plan import plan_cells

OPTIONS = ("--pruners", "uniform", "--keep", "3", "--no-timing", "--seeds", "1", "--workers", "1")


def bench(*args: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--model", str(world()[0]), *OPTIONS, *(str(a) for a in args)])
    return int(stop.value.code or 0)


def test_public_benchmarks_are_asked_and_scored_by_their_metrics(tmp_path: Path):
    for name in ("pope", "mme", "textvqa"):
        write(tmp_path / "data", name)
    out = tmp_path / "out"
    assert bench("--tasks", "pope,mme,textvqa", "--data-dir", tmp_path / "data", "--output", out) == 0
    rows = read_all(out / "results.jsonl")
    assert {r["task"] for r in rows} == {"pope", "mme", "textvqa"}
    assert {r["cell"] for r in rows} == {"unpruned", "random(keep=3)", "uniform(keep=3)"}
    about = json.loads((out / "summary.json").read_text())
    official = about["cells"][0]["official"]
    assert {"f1", "yes_ratio"} <= set(official["pope"])
    longest = about["configuration"]["generation"]["max_new_tokens"]
    assert set(longest) == {"pope", "mme", "textvqa"}
    assert all(len(r["parsed"]) <= len(r["prediction"]) + 4 for r in rows)


def definition(folder: Path, pictures: list[bytes], **more: Any) -> Path:
    """A task of several images per question."""
    import yaml

    folder.mkdir()
    for i, data in enumerate(pictures):
        (folder / f"{i}.png").write_bytes(data)
    lines = [
        {"q": "which is red?", "a": "one", "pics": ["0.png", "1.png"]},
        {"q": "and here?", "a": "two", "pics": ["2.png"]},
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    about = {"task": "pairs", "metric": "exact", "prompt": "q", "answer": "a", "image": "pics", **more}
    (folder / "pairs.yaml").write_text(yaml.safe_dump(about))
    return folder


def test_several_images_and_what_the_task_says_of_answers(tmp_path: Path):
    data = definition(tmp_path / "data", [png(i) for i in range(3)], max_new_tokens=2)
    assert bench("--data", data, "--output", tmp_path / "out") == 0
    rows = {(r["cell"], r["question"]): r for r in read_all(tmp_path / "out" / "results.jsonl")}
    assert rows["unpruned", "which is red?"]["visual_total"] == 2 * rows["unpruned", "and here?"]["visual_total"]
    assert rows["uniform(keep=3)", "which is red?"]["visual_kept"] == 6
    assert rows["uniform(keep=3)", "and here?"]["visual_kept"] == 3
    about = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert about["configuration"]["generation"]["max_new_tokens"] == {"pairs": 2}


def test_images_that_do_not_decode_stop_or_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = definition(tmp_path / "data", [png(0), png(1), png(2)[:90]])
    assert bench("--data", data, "--output", tmp_path / "out") == 2
    assert "test.jsonl line 2) cannot be read as an image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert bench("--data", data, "--output", tmp_path / "out", "--on-error", "skip") == 0
    told = capsys.readouterr().out
    assert "1 rows or questions skipped" in told
    assert "test.jsonl line 2" in told
    assert {r["question"] for r in read_all(tmp_path / "out" / "results.jsonl")} == {"which is red?"}
    assert bench("--data", data, "--on-error", "sometimes") == 2
    assert "allowed are stop, skip" in capsys.readouterr().err


def test_sources_can_be_mixed(tmp_path: Path):
    write(tmp_path, "pope")
    own = definition(tmp_path / "own", [png(i) for i in range(3)])
    tasks, names = load_asked(["exist", "pope", str(own / "pairs.yaml")], None, tmp_path)
    assert names is None
    assert tasks.tasks == ("exist", "pope", "pairs")
    for task in tasks.tasks:
        question = next(q for q in tasks.questions if q.task == task)
        assert tasks.visuals(question)[0].mode == "RGB"
    with pytest.raises(ValueError, match=r"unknown task 'poppe'.*exist.*\(bundled\).*pope.*lmms:NAME"):
        load_asked(["poppe"])
    with pytest.raises(ValueError, match="--data-dir needs --tasks"):
        load_asked(None, None, tmp_path)


def test_seeds_and_random_are_in_every_sweep():
    cells = plan_cells(["dart", "uniform(layer=2)"], [0.5, 3], range(4, 7), random=True).cells
    randoms = [c for c in cells if c.method == "random"]
    assert [(c.keep, c.seed) for c in randoms] == [(k, s) for k in (0.5, 3) for s in (4, 5, 6)]
    assert len({c.line for c in randoms}) == 2
    assert len({c.spec for c in randoms}) == 6
    assert {c.seed for c in cells if not c.method.startswith("random")} == {None}
    # what chooses inside the decoder is compared with random there, which sees as many tokens in as many layers
    late = [c for c in cells if c.method == "random(layer=2)"]
    assert [(c.keep, c.seed) for c in late] == [(k, s) for k in (0.5, 3) for s in (4, 5, 6)]
    methods = [c.method for c in plan_cells(["fastv(layer=3)", "pool", "vtw"], [0.5], random=True).cells]
    assert methods == ["unpruned", "random", "random(layer=3)", "fastv(layer=3)", "pool", "vtw"]
    assert len(plan_cells(["random", "dart"], [3], range(2), random=True).cells) == 1 + 2 + 2 + 1
    every = plan_cells(["all"], [0.5], random=True).cells
    assert [c.method for c in every[:3]] == ["unpruned", "random", "random(layer=2)"]
    assert len({c.spec for c in every}) == len(every)
    assert [c.method for c in plan_cells(["dart"], [3]).cells] == ["unpruned", "dart"]
    own = plan_cells(["random(seed=9)"], [3], range(3)).cells[1:]
    assert [(c.spec, c.seed) for c in own] == [("random(keep=3, seed=9)", None)]


def test_whoever_looks_at_a_video_sees_as_many_frames_as_asked(tmp_path: Path):
    """Probes and baselines see what the answers are given for, not the definition's number."""
    write_frames(tmp_path / "film", 12)
    (tmp_path / "q.jsonl").write_text(json.dumps({"q": "What?", "a": "red"}))
    head = "task: films\nmetric: exact_match\nfiles: q.jsonl\nprompt: q\nanswer: a\nvideo: '{{ \"film\" }}'\n"
    (tmp_path / "task.yaml").write_text(head + "num_frames: 6\n")
    for asked, want in ((None, 6), (3, 3)):
        everything, tasks = asked_questions(RunOptions(data=tmp_path, num_frames=asked))
        assert len(tasks.visuals(tasks.questions[0])) == want
        assert everything.info["films"].num_frames == 6
