"""What needs no model is said before torch is imported, which alone takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image

from vtc.bundled_files import bundled_data
from vtc.commands.main import app

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
RUN = """
import sys
from vtc.commands.main import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    loaded = [name for name in ("torch", "transformers") if name in sys.modules]
    print("LOADED", *loaded)
    sys.exit(stop.code)
"""
BAD = {
    "bench": [
        "--pruners nope",
        "--pruners dart,nope",
        "--pruners dart(keep=2.0)",
        "--keep 2.0",
        "--recipe nope",
        "--pruners dart(nope=1)",
        "--tasks nope",
        "--device nope",
        "--match nope",
        "--dtype nope",
        "--on-error nope",
        "--shard x",
        "--data MISSING",
        "--model ./missing",
    ],
    "tune": [
        "--pruners nope",
        "--tasks nope",
        "--keep 2.0",
        "--by nope",
        "--data MISSING",
        "--dtype nope",
        "--model ./missing",
    ],
    "ask": [
        "--image PICTURE --question hi --pruner nope",
        "--image PICTURE --question hi --pruner dart --keep 2.0",
        "--image MISSING --question hi",
        "--image PICTURE --question=",
        "--image PICTURE --question hi --dtype nope",
        "--image PICTURE --question hi --device nope",
        "--image PICTURE --question hi --model ./missing",
    ],
    "show": [
        "--pruner nope --keep 0.5",
        "--pruner dart --keep 2.0",
        "--signal nope",
        "--pruner dart --keep 0.5 --image MISSING",
        "--pruner dart --keep 0.5 --dtype nope",
    ],
    "serve": [
        "--pruner nope --keep 0.5",
        "--device nope",
        "--pruner dart --keep 2.0",
        "--dtype nope",
        "--allow nope",
        "--min-keep 2.0",
    ],
    "load-test": ["--target x", "--data MISSING", "--dtype nope"],
    "plan": [
        "--model bundled --keep 2.0",
        "--model bundled --pruners nope",
        "--model bundled --gpu nope",
        "--model bundled --image nope",
        "--model bundled --batch x",
        "--model bundled --dtype nope",
    ],
    "speed": ["--pruners nope", "--keep 2.0", "--image nope", "--dtype nope", "--data MISSING"],
    "check": [
        "bundled --attn nope",
        "bundled --stage nope",
        "bundled --pruner nope",
        "bundled --pruner dart --keep 2.0",
    ],
    "stability": ["--pruners nope", "--keep 2.0"],
    "compare-selections": [
        "--pruner dart --pruner nope --keep 0.5",
        "--pruner dart --pruner uniform --keep 2.0",
        "--pruner dart --pruner uniform --keep 0.5 --image MISSING",
    ],
    "horizon": [
        "--tasks nope",
        "--tasks gqa",
        "--search nope",
        "--limit 0",
        "--threshold 0",
        "--data MISSING",
        "--dtype nope",
        "--model ./missing",
    ],
    "embedlens": [
        "--data MISSING",
        "--image MISSING",
        "--images 1",
        "--presence 2",
        "--sink-cosine 0.1",
        "--dtype nope",
    ],
    "train": [
        "nope",
        "tokenflex --data MISSING",
        "tokenflex --data BUNDLED",
        "tokenflex --stage nope",
        "tokenflex --stage caption",
        "tokenflex --train nope",
        "tokenflex --train lm,lora",
        "tokenflex --counts 4,x",
        "tokenflex --keep 4 --counts 4,9",
        "tokenflex --counts 4,9 --shares 1",
        "tokenflex --steps 0",
        "tokenflex --model bundled_not_there",
        "tokenflex --tasks nope",
        "explainer --data MISSING",
        "explainer --tasks nope",
        "explainer --epochs 0",
        "explainer --rate 0",
        "explainer --held-out 2",
    ],
    "train-explainer": ["--data MISSING", "--dtype nope", "--tasks color,nope"],
    "export-vllm": ["bundled OUT --pruner nope", "bundled OUT --pruner dart --keep 2.0", "./missing OUT --pruner dart"],
    "pruners": ["--import MISSING"],
    "recipes": ["--nope"],
}


def run(*args: str) -> tuple[int, str, list[str]]:
    """Exit code, stderr, and which of the heavy libraries were imported."""
    done = subprocess.run([sys.executable, "-c", RUN, *args], capture_output=True, text=True, timeout=300)
    line = next(line for line in done.stdout.splitlines() if line.startswith("LOADED"))
    return done.returncode, done.stderr, line.split()[1:]


def test_every_command_has_bad_inputs() -> None:
    assert sorted(BAD) == COMMANDS


@pytest.mark.parametrize(("command", "text"), [(c, t) for c, texts in BAD.items() for t in texts])
def test_bad_input_is_told_before_torch_is_imported(command: str, text: str, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (28, 28)).save(picture)
    places = {"PICTURE": str(picture), "MISSING": str(tmp_path / "missing"), "OUT": str(tmp_path / "out")}
    places["BUNDLED"] = str(bundled_data())
    code, error, loaded = run(command, *(places.get(word, word) for word in text.split()))
    assert (code, loaded) == (2, []), error
    assert error.startswith("vtc: ")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)])
def test_help_imports_no_torch(args: list[str]) -> None:
    assert run(*args) == (0, "", [])
