"""docs/lmms-eval.md: its table is the code's, and its offline commands run as they stand, but for names of folders."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench_world import TOKENS, png, save_model
from lmms_world import installed_task, pope_rows, require_lmms_eval, result, samples, token_files, write_task
from places import ROOT
from result_rows import read_all

require_lmms_eval()

PAGE = ROOT / "docs" / "lmms-eval.md"
QUESTIONS = 24
COLOURS = ("red", "blue", "green", "yellow")


def blocks(language: str) -> list[str]:
    """The page's code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_table_names_the_arguments() -> None:
    from lmms_eval.models import list_available_models

    from vtc.integrations.lmms_eval.model_arguments import ON_ERROR, OWN, POSITIONS

    rows = [line.split("|")[1:3] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert [name for first, _ in rows for name in re.findall(r"`(\w+)`", first)] == [
        "base", "method", "keep", "pruner", "positions", "on_error",
    ]  # fmt: skip
    assert {name for first, _ in rows for name in re.findall(r"`(\w+)`", first)} == set(OWN)
    meaning = {first.strip(" `"): text for first, text in rows}
    assert meaning["positions"].strip() == f"`{POSITIONS[0]}` (default) or `{POSITIONS[1]}`"
    assert re.findall(r"`(\w+)`", meaning["on_error"]) == list(ON_ERROR)
    assert set(re.findall(r"`(\w+)`", meaning["base"])) <= set(list_available_models())


def test_the_examples_of_arguments_are_read() -> None:
    from vtc.integrations.lmms_eval.model_arguments import read_setup

    text = PAGE.read_text()
    quoted = [next(iter(shlex.split(part))) for part in re.findall(r"`('pruner=.*?')`", text)]
    given = re.findall(r"--model_args (\S+)", text) + [
        f"base=llava_hf,{part}" for part in (*quoted, *re.findall(r"`(method=[^`]*)`", text))
    ]
    assert len(given) >= 5
    assert {read_setup(part).base for part in given} == {"llava_hf"}


def commands() -> tuple[list[str], list[str]]:
    """The offline ones, of lmms-eval and of vtc."""
    lines = blocks("bash")[-1].replace("\\\n", " ").splitlines()
    theirs, ours = (shlex.split(line) for line in lines[1:])
    assert theirs[:3] == ["python", "-m", "lmms_eval"]
    assert ours[:2] == ["vtc", "bench"]
    return theirs[1:], ["-m", *ours, "--batch-size", "2", "--workers", "1", "--no-timing"]


def start(folder: Path, arguments: list[str]) -> subprocess.Popen[str]:
    """A command of the page, its model's folder aside."""
    line = [part.replace("/models/llava-1.5-7b-hf", str(folder / "tiny")) for part in arguments]
    (export,) = [line for line in blocks("bash")[-1].splitlines() if line.startswith("export ")]
    offline = dict(part.split("=") for part in shlex.split(export)[1:])
    environment = {**os.environ, **offline, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *line], cwd=folder, env=environment, **pipes)


def rows(folder: Path) -> list[dict[str, Any]]:
    return read_all(folder / "sweep" / "results.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both commands ran, the one of vtc after it was killed in the middle."""
    root = tmp_path_factory.mktemp("docs")
    asked = [
        (png(i), f"is there a {COLOURS[i % 4]} square in the image?", ("yes", "no")[i % 2]) for i in range(QUESTIONS)
    ]
    write_task(root / "data", "part", pope_rows(asked))
    save_model(root / "tiny")
    (yaml,) = blocks("yaml")
    # the tiny model was never taught to end: 128 tokens of noise would only take time
    text = yaml + "generation_kwargs: {max_new_tokens: 4, do_sample: false}\n"
    text = text.replace("/path/to/site-packages/lmms_eval/tasks/pope/pope.yaml", installed_task("pope/pope.yaml"))
    text = text.replace("/data/pope/", f"{root / 'data'}/")
    (root / "my" / "tasks").mkdir(parents=True)
    (root / "my" / "tasks" / "pope_local.yaml").write_text(text)
    theirs, ours = commands()
    lmms = start(root, theirs)
    said = lmms.communicate(timeout=600)[0]
    assert lmms.returncode == 0, said[-4000:]
    first = start(root, ours)
    try:
        while not (root / "sweep" / "results.jsonl").exists() or len(rows(root)) < QUESTIONS + 4:
            assert first.poll() is None, f"it ended before it could be killed: {first.communicate()[0][-4000:]}"
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
    finally:
        first.communicate()
    survived = (root / "sweep" / "results.jsonl").read_bytes()
    (root / "survived").write_bytes(survived[: survived.rfind(b"\n") + 1])
    again = start(root, ours)
    said = again.communicate(timeout=600)[0]
    assert again.returncode == 0, said[-4000:]
    return root


def test_a_killed_sweep_goes_on_where_it_was(folder: Path) -> None:
    survived = (folder / "survived").read_bytes()
    cells = json.loads((folder / "sweep" / "summary.json").read_text())["cells"]
    specs = {spec for cell in cells for spec in cell["specs"]}
    assert QUESTIONS < survived.count(b"\n") < QUESTIONS * len(specs)
    assert (folder / "sweep" / "results.jsonl").read_bytes().startswith(survived)
    found = [(row["cell"], row["question_id"]) for row in rows(folder)]
    assert sorted(found) == sorted((spec, f"pope_local-{i}") for spec in specs for i in range(QUESTIONS))


def test_both_commands_ask_and_score_alike(folder: Path) -> None:
    (told,) = token_files(folder / "out")
    assert (told["requests"], told["visual_tokens"], told["kept_share"]) == (QUESTIONS, QUESTIONS * TOKENS, 0.25)
    dart = {row["question_id"]: row for row in rows(folder) if row["method"] == "dart"}
    ours, theirs = [dart[f"pope_local-{i}"] for i in range(QUESTIONS)], samples(folder / "out")
    assert [row["question"] for row in ours] == [sample["input"] for sample in theirs]
    assert [row["prediction"] for row in ours] == [sample["filtered_resps"].strip() for sample in theirs]
    assert {row["visual_kept"] for row in ours} == {TOKENS // 4}
    cells = json.loads((folder / "sweep" / "summary.json").read_text())["cells"]
    (official,) = (cell["official"]["pope_local"] for cell in cells if cell["method"] == "dart")
    figures = result(folder / "out")["results"]["pope_local"]
    named = {name: value for name, value in official.items() if name != "unparsed"}
    assert len(named) == 5
    assert named == pytest.approx({name: figures[f"{name},none"] for name in named})
