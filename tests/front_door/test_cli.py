"""The command line: what works prints what it should, what does not is one line and exit code 2."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from importlib.metadata import version
from pathlib import Path

import pytest
from bench_world import TOKENS, png, save_data, world
from command_line import run
from result_rows import read_all
from safetensors.torch import load_file, save_file

import vtc
from vtc.commands.main import main


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.png").write_bytes(png(1))
    (tmp_path / "torn.png").write_bytes(png(1)[:150])
    (tmp_path / "text.png").write_text("no picture")
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)  # 3.6 gigapixels in 100 bytes
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    bomb = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bomb)
    (tmp_path / "file").write_text("")
    return tmp_path


ASK = ("ask", "--question", "what color is the circle?")
BAD = {
    "no such image": (*ASK, "--image", "nowhere.png"),
    "not an image": (*ASK, "--image", "text.png"),
    "cannot be read": (*ASK, "--image", "torn.png"),
    "too large": (*ASK, "--image", "bomb.png"),
    "is not a file": (*ASK, "--image", "."),
    "Did you mean 'random'": (*ASK, "--image", "good.png", "--pruner", "randon", "--keep", "0.5"),
    "needs --keep": (*ASK, "--image", "good.png", "--pruner", "random"),
    "--keep=0 is out of range": (*ASK, "--image", "good.png", "--pruner", "random", "--keep", "0"),
    "--keep=1.5 is out of range": (*ASK, "--image", "good.png", "--pruner", "random", "--keep", "1.5"),
    "got 'x'": (*ASK, "--image", "good.png", "--pruner", "random", "--keep", "x"),
    "--keep=nan": (*ASK, "--image", "good.png", "--pruner", "random", "--keep", "nan"),
    "no parameter 'sed'": (*ASK, "--image", "good.png", "--pruner", "random(sed=3)", "--keep", "3"),
    "no such model": (*ASK, "--image", "good.png", "--model", "nowhere"),
    "Missing option": ("ask", "--image", "good.png"),
    "No such option": (*ASK, "--image", "good.png", "--loud"),
    "--keep=-3": ("bench", "--keep", "0.5,-3"),
    "--keep is empty": ("bench", "--keep", ","),
    "--pruners is empty": ("bench", "--pruners", " ,"),
    "Did you mean 'dart-llava-1.5-7b'": ("bench", "--recipe", "dart-llava-1.5-7"),
    "is an address on the web: download it": (*ASK, "--image", "https://a.example/b.png"),
    "layer='2' is of the wrong kind (str); it must be an int or None": (
        *ASK, "--image", "good.png", "--pruner", "random(layer='2', keep=3)"
    ),
    "or a definition such as task.yaml beside its data": ("bench", "--data", "."),
    "signal 'heat' is unknown": ("show", "--signal", "heat"),
    "good.png is there already; name another file, or say --overwrite": (
        "show", "--pruner", "random(keep=3)", "--out", "good.png"
    ),
    "--emit: good.png is there already": ("bench", "--emit", "good.png", "--pruners", "uniform", "--no-random"),
    "no such file: mine.yaml": ("bench", "--recipe", "mine.yaml"),
    "leave out --keep": ("bench", "--recipe", "dart-llava-1.5-7b", "--keep", "0.5"),
    "leave out --pruners": ("bench", "--recipe", "dart-llava-1.5-7b", "--pruners", "dart"),
    "unknown pruner 'dort'": ("bench", "--pruners", "random,dort"),
    "unknown task 'colour'": ("bench", "--tasks", "colour"),
    "--limit 0": ("bench", "--limit", "0"),
    "Invalid value for '--limit'": ("bench", "--limit", "many"),
    "--output: file is a file": ("bench", "--output", "file/out"),
    "no such folder: nowhere": ("bench", "--data", "nowhere"),
    "must end in .png": ("show", "--pruner", "random(keep=3)", "--out", "kept.jpg"),
    "--out: no such folder": ("show", "--pruner", "random(keep=3)", "--out", "no/kept.png"),
    "no pruner matches": ("pruners", "zzz*"),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_and_code_2(message: str, place: Path, capsys: pytest.CaptureFixture[str]):
    before = sorted(place.rglob("*"))
    args = list(BAD[message])
    if args[0] in ("ask", "show", "bench") and "--model" not in args:
        args += ["--model", world()[0]]
    code, _, err = run(capsys, *args)
    assert code == 2
    assert message in err
    assert err.startswith("vtc: ")
    assert err.count("\n") == 1, err
    assert sorted(place.rglob("*")) == before, "something was left behind"


def test_corrupt_evaluation_images_are_told(place: Path, capsys: pytest.CaptureFixture[str]):
    from vtc.eval.tasks.questions import Question
    from vtc.eval.tasks.reading.parquet_set import save_tasks

    data = save_tasks(place / "data", {"i": png(0)[:100]}, [Question("q", "t", "i", "what?", "a")])
    code, _, err = run(capsys, "bench", "--data", data, "--model", world()[0], "--output", "out", "--no-timing")
    assert code == 2
    assert "image i of data" in err
    assert not (place / "out").exists()


def test_ask(place: Path, capsys: pytest.CaptureFixture[str]):
    model = world()[0]
    code, out, err = run(capsys, *ASK, "--image", "good.png", "--model", model, "--pruner", "random", "--keep", "4")
    assert (code, err) == (0, "")
    answer, note = out.splitlines()
    assert answer
    assert f"random(keep=4): 4 of {TOKENS} visual tokens (25.0%)" in note
    code, out, _ = run(capsys, *ASK, "--image", "good.png", "--model", model)
    assert f"unpruned: {TOKENS} of {TOKENS}" in out


def test_ask_applies_a_saved_setting(place: Path, capsys: pytest.CaptureFixture[str]):
    from vtc.eval.vlm.loading import load_model

    loaded = load_model(str(world()[0]))
    vtc.compress(loaded.model, "uniform", keep=2).save_pretrained(place / "saved")
    loaded.processor.save_pretrained(place / "saved")
    code, out, _ = run(capsys, *ASK, "--image", "good.png", "--model", place / "saved")
    assert code == 0
    assert f"uniform(keep=2): 2 of {TOKENS}" in out


def test_a_saved_setting_is_named_by_its_folder(place: Path, capsys: pytest.CaptureFixture[str]):
    """As ``vtc tune`` leaves one; a folder without one is taken for a method's name, and it is none."""
    command = (*ASK, "--image", "good.png", "--model", world()[0], "--pruner")
    vtc.VTCConfig(pruner="uniform", keep=3).save_pretrained(place / "tuned")
    for named in (place / "tuned", place / "tuned" / "vtc_config.json"):
        code, out, _ = run(capsys, *command, named)
        assert (code, f"uniform(keep=3): 3 of {TOKENS}" in out) == (0, True)
    code, _, err = run(capsys, *command, place / "tuned", "--keep", "5")
    assert (code, "keep is given twice: in 'uniform(keep=3)'" in err) == (2, True)
    (place / "uniform").mkdir()
    code, out, _ = run(capsys, *command, "uniform", "--keep", "2")
    assert (code, f"uniform(keep=2): 2 of {TOKENS}" in out) == (0, True)
    vtc.VTCConfig(pruner="uniform", keep=3, positions="compact").save_pretrained(place / "packed")
    code, _, err = run(capsys, *command, place / "packed")
    assert code == 2
    assert "was saved with positions='compact', which only vtc.load and vtc.compress take" in err


def test_weights_under_other_names_are_no_model(place: Path, capsys: pytest.CaptureFixture[str]):
    """Another version's names for the tower, say: transformers would go on with random numbers."""
    shutil.copytree(world()[0], place / "renamed")
    file = place / "renamed" / "model.safetensors"
    weights = {name.replace("layer_norm1", "norm"): w for name, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    code, out, err = run(capsys, *ASK, "--image", "good.png", "--model", place / "renamed")
    assert (code, out) == (2, "")
    assert re.search(r"6 weights are not in its files \(such as .*layer_norm1", err)


def test_bench_prints_tables_and_commas_inside_parentheses_hold(place: Path, capsys: pytest.CaptureFixture[str]):
    data = save_data(place / "data", images=2)
    code, out, _ = run(
        capsys, "bench", "--model", world()[0], "--data", data, "--pruners", "random(layer=2, seed=3),pool",
        "--keep", "25%", "--tasks", "exist,color", "--limit", "3", "--output", "out", "--no-timing", "--no-random",
    )  # fmt: skip
    assert code == 0
    for text in ("Accuracy (%)", "exist", "n=3", "random(layer=2, seed=3)", "pool", "vs unpruned", "out/results.jsonl"):
        assert text in out
    lines = read_all(place / "out" / "results.jsonl")  # every process has a file of its own
    assert {r["cell"] for r in lines} == {"unpruned", "random(keep=0.25, seed=3, layer=2)", "pool(keep=0.25)"}
    assert {r["task"] for r in lines} == {"exist", "color"}


def test_pruners(capsys: pytest.CaptureFixture[str]):
    code, out, _ = run(capsys, "pruners", "--json")
    listed = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert set(listed) == set(vtc.list_pruners())
    assert listed["fastv"]["stages"] == ["decoder"]
    assert "2403.06764" in listed["fastv"]["paper"]
    assert listed["fastv"]["uses_text"]
    assert listed["fastv"]["signals"] == ["DecoderAttention(queries=last)"]
    assert listed["fastv"]["parameters"] == {"layer": 2}
    code, out, _ = run(capsys, "pruners", "r*")
    assert code == 0
    assert "random" in out
    assert "fastv" not in out


def test_pruners_with_parameters(capsys: pytest.CaptureFixture[str]):
    code, out, _ = run(capsys, "pruners", "dart(official=True)", "--json")
    assert code == 0
    assert [(row["name"], row["adaptive_count"]) for row in json.loads(out)] == [("dart", True)]
    code, out, _ = run(capsys, "pruners", "prumerge")
    assert "parameters: keep, adaptive=False, official=False" in out
    assert "families: with a class token: LLaVA-1.5 (CLIP, DINOv2), ViP-LLaVA, LLaVA-NeXT" in out
    assert "not on Gemma3: its vision tower has no class token" in out


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]):
    code, table, _ = run(capsys, "recipes")
    assert code == 0
    assert "dart-llava-1.5-7b" in table
    assert run(capsys, "bench", "--recipe", "list") == (0, table, "")
    found = json.loads(run(capsys, "recipes", "--json")[1])
    assert found[0]["cells"]
    assert len(found) == len(list((Path(vtc.__file__).parent / "recipes").glob("*.yaml")))


def test_version(capsys: pytest.CaptureFixture[str]):
    said = f"vtc {vtc.__version__}, torch {version('torch')}, transformers {version('transformers')}"
    assert run(capsys, "--version") == (0, f"{said}\n", "")
    for args in (("bench", "--limit", "0"), ("ask", "--loud"), ("tune", "--target", "2")):
        code, _, err = run(capsys, *args)
        assert code == 2
        assert err.endswith(f" [{said}]\n")


@pytest.mark.parametrize("command", ["bench", "tune", "horizon"])
def test_help_tells_the_defaults(capsys: pytest.CaptureFixture[str], command: str):
    text = " ".join(re.sub("[│╭╰─]", " ", run(capsys, command, "--help")[1]).split())
    assert "default: vtc-" in text  # square brackets would be markup


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["bench", "--limit", "0"], ["show", "--out", "a.jpg"], ["x"]]
)
def test_help_and_errors_that_need_no_model_do_not_import_torch(args: list[str]):
    code = f"import sys\nfrom vtc.commands.main import main\ntry:\n main({args})\n"
    code += "finally:\n print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout
    assert out.strip().endswith("False")


def test_errors_that_nobody_foresaw_are_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: object) -> None:
        raise RuntimeError("The size of tensor a (151)\nmust match tensor b (583)")

    monkeypatch.setattr("vtc.eval.reports.method_list.describe", fail)
    code, _, err = run(capsys, "pruners")
    assert code == 2
    assert err.startswith("vtc: RuntimeError: The size of tensor a (151) must match tensor b (583) (VTC_TRACEBACK=1")
    assert err.count("\n") == 1
    monkeypatch.setenv("VTC_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="size of tensor"):
        main(["pruners"])


def test_a_file_is_replaced_only_when_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from vtc.commands.options import output_file

    monkeypatch.chdir(tmp_path)
    assert output_file("--out", None, "kept.png", False) == Path("kept.png")
    Path("kept.png").write_text("mine")
    assert output_file("--out", None, "kept.png", False) == Path("kept-2.png")
    assert output_file("--out", Path("kept.png"), "kept.png", True) == Path("kept.png")
    with pytest.raises(ValueError, match=r"--out: kept\.png is there already; name another file, or say --overwrite"):
        output_file("--out", Path("kept.png"), "kept.png", False)
    with pytest.raises(ValueError, match="must end in"):
        output_file("--out", Path("kept.jpg"), "kept.png", True)
