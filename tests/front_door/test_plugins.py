"""Methods from elsewhere: a user's file in every command and in worker processes, and packages that are broken."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_world import save_data
from command_line import run
from plugin_files import bench
from readme import snippet
from result_rows import read_all
from zoo import prompt, tiny

import vtc
from vtc.pruners import registry
from vtc.pruners.visual_tokens import VisualTokens

METHOD = '''
from dataclasses import dataclass
import vtc

@vtc.register_pruner("{name}")
@dataclass(kw_only=True)
class Mine(vtc.ScorePruner):
    """Keeps the last tokens."""

    power: float = 1.0
    stage = "input"

    def score(self, tokens):
        return {sign}tokens.ids.float()
'''


def method(path: Path, name: str = "mine", sign: str = "") -> Path:
    path.write_text(METHOD.format(name=name, sign=sign))
    return path


def test_a_file_registers_its_methods_once(place: Path):
    file = method(place / "my.py")
    assert vtc.import_methods("my.py") == vtc.import_methods(file) == ["mine"]
    assert registry.imported() == [str(file)]
    assert vtc.parse("mine(power=2)", keep=3)[0].params() == {"keep": 3, "power": 2}


def test_a_module_is_imported_by_its_name(place: Path, monkeypatch: pytest.MonkeyPatch):
    (place / "their_package").mkdir()
    method(place / "their_package" / "methods.py", "theirs")
    monkeypatch.syspath_prepend(place)
    assert vtc.import_methods("their_package.methods") == ["theirs"]


def test_a_file_may_import_what_lies_beside_it(place: Path):
    (place / "beside_it.py").write_text("NAME = 'beside'")
    (place / "my.py").write_text("import beside_it\n" + METHOD.format(name="mine", sign=""))
    assert vtc.import_methods("my.py") == ["mine"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"can't import my\.py: no such file"),
        ("x = 1", r"my\.py registers no method: write @vtc\.register_pruner\('name'\)"),
        ("\n\nprint(y)", r"can't import my\.py: NameError: name 'y' is not defined \(line 3\)"),
        ("x = (", r"can't import my\.py: SyntaxError: .*\(line 1\)"),
        ("import sys\nsys.exit(3)", r"can't import my\.py: SystemExit: 3 \(line 2\)"),
        (
            METHOD.format(name="dart", sign=""),
            r"can't import my\.py: ValueError: the name 'dart' is already registered",
        ),
        (METHOD.format(name="mine", sign="") + "1/0", r"can't import my\.py: ZeroDivisionError"),
    ],
    ids=["missing", "nothing in it", "fails", "no Python", "leaves", "takes a name", "fails late"],
)
def test_a_file_that_does_not_work_is_one_line_and_leaves_nothing(place: Path, capsys: Any, text: str, message: str):
    if text is not None:
        (place / "my.py").write_text(text)
    code, _, err = run(capsys, *bench("--import", "my.py", "--pruners", "mine"))
    assert code == 2
    assert re.search(message, err)
    assert err.count("\n") == 1
    assert "mine" not in vtc.list_pruners()


def test_an_unknown_method_is_told_how_to_become_known(place: Path, capsys: Any):
    _, _, err = run(capsys, *bench("--pruners", "mine"))
    assert "unknown pruner 'mine'" in err
    assert "--import FILE.py" in err
    assert "vtc.import_methods(FILE)" in err


def test_every_command_with_methods_takes_a_file(place: Path, capsys: Any):
    import typer.main

    from vtc.commands.main import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    takes = {name for name, c in commands.items() if any("--import" in p.opts for p in c.params)}
    named = {name for name, c in commands.items() if any({"--pruner", "--pruners"} & {*p.opts} for p in c.params)}
    assert takes == named | {"pruners"}
    assert takes >= {"bench", "tune", "ask", "show", "compare-selections", "check", "stability"}
    method(place / "my.py")
    code, out, _ = run(capsys, "pruners", "mine", "--import", "my.py")
    assert (code, "Keeps the last tokens" in out) == (0, True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep_and_its_workers_run_the_readme_s_method(place: Path, capsys: Any, workers: int):
    Path("my_method.py").write_text(snippet("my_method.py"))
    data = save_data(place / "data", images=3)
    code, _, err = run(
        capsys, *bench("--import", "my_method.py", "--pruners", "mine,mine(power=2)", "--data", data),
        "--output", "out", "--workers", workers, "--batch-size", 2,
    )  # fmt: skip
    assert (code, err) == (0, "")
    rows = read_all(place / "out" / "results.jsonl")
    assert {row["cell"] for row in rows} == {"unpruned", "mine(keep=3)", "mine(keep=3, power=2)"}
    assert {row["visual_kept"] for row in rows if row["cell"] != "unpruned"} == {3}


def test_the_first_method_of_the_docs_keeps_the_loudest(place: Path):
    Path("loudest.py").write_text(snippet("loudest.py"))
    assert vtc.import_methods("loudest.py") == ["loudest"]
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    with torch.no_grad():
        (features,) = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
        with vtc.compressed(model, "loudest", keep=5):
            model(**inputs)
            (kept,) = model.vtc.report.steps[-1].kept
    assert kept.tolist() == sorted(features.norm(dim=-1).topk(5).indices.tolist())


def test_answers_are_kept_under_the_file_s_content_and_the_parameters(place: Path, capsys: Any):
    """An edited method is another method: in a new process its file is read anew, and so are its answers."""
    data = save_data(place / "data", images=1)

    def configurations() -> set[str]:
        command = bench("--import", "my.py", "--pruners", "mine", "--data", data, "--output", "out", "--workers", 1)
        code = f"from vtc.commands.main import main; main({[str(a) for a in command]!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return {row["config"] for row in read_all(place / "out" / "results.jsonl")}

    method(place / "my.py")
    first = configurations()
    assert configurations() == first
    method(place / "my.py", sign="-")
    assert len(configurations()) == len(first) + 1 == 2
    described = json.loads((place / "out" / "summary.json").read_text())["configuration"]
    assert set(described["methods"]) == {"mine"}


def test_one_broken_package_warns_and_the_others_are_there(tmp_path: Path):
    for name, text in (
        ("broken", "raise OSError('no licence')"),
        ("leaving", "raise SystemExit(1)"),
        ("whole", METHOD),
    ):
        (tmp_path / f"{name}_plug.py").write_text(text.format(name="whole", sign="") if name == "whole" else text)
        info = tmp_path / f"{name}_plug-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plug\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[vtc.pruners]\n{name} = {name}_plug:Mine\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from vtc.commands.main import main\n"
        "main(['pruners', 'whole', '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)[0]["name"] == "whole"
    lines = sorted(done.stderr.splitlines())
    assert len(lines) == 2
    assert lines[0].startswith(
        "vtc: warning: the plug-in broken = broken_plug:Mine of the package broken-plug can't be"
    )
    assert lines[0].endswith("OSError: no licence")
    assert "leaving-plug" in lines[1]


def test_reading_by_a_string_is_explained():
    from vtc.pruners.signals import DecoderAttention

    tokens: Any = VisualTokens(None, None, [], [], [], None, [])  # type: ignore[arg-type]
    for given in ("DecoderAttention", "decoder_attention", DecoderAttention, "DecoderAttention(queries='text')"):
        for read in (tokens.read, tokens.text):
            with pytest.raises(TypeError, match=r"such as DecoderAttention\(\), not .*import DecoderAttention`"):
                read(given)
    with pytest.raises(TypeError, match=r"There is: .*EncoderKeys, .*TextEmbeddings"):
        tokens.read("attention")


@pytest.mark.parametrize("declared", ["DecoderAttention()", "'DecoderAttention'", "(DecoderAttention,)", "('x',)"])
def test_signals_that_are_none_are_refused_when_wrapping(place: Path, declared: str):
    Path("my.py").write_text(
        METHOD.format(name="mine", sign="")
        .replace("import vtc", "import vtc\nfrom vtc.pruners.signals import DecoderAttention")
        .replace('stage = "input"', f'stage = "input"\n    signals = {declared}')
    )
    vtc.import_methods("my.py")
    with pytest.raises(TypeError, match=r"mine\.signals must be a tuple of signals such as \(DecoderAttention\(\),\)"):
        vtc.parse("mine", keep=3)
