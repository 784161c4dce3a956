"""What needs no model is said before torch is imported, which alone takes seconds."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import typer
from PIL import Image

from vtc.bundled_files import bundled_data
from vtc.commands.main import app
from vtc.pruners.primitives.calibration_file import FORMAT

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
# all cases in one process, in which whoever imports torch or transformers is stopped
RUN = """
import contextlib, io, json, sys

class Heavy(BaseException):
    pass

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers"):
            raise Heavy(name)

sys.meta_path.insert(0, Stop())
from vtc.commands.main import main

for args in json.load(sys.stdin):
    said, imported, code = io.StringIO(), None, None
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(args)
        except SystemExit as stop:
            code = stop.code
        except Heavy as heavy:
            imported = str(heavy)
    print(json.dumps([code, said.getvalue(), imported]))
"""
PLACES = ("PICTURE", "MISSING", "OUT", "EMPTY", "FILE", "LIST", "DAMAGED", "BROKEN.py")
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
        "--model EMPTY",
        "--output FILE",
        "--output FILE/x",
        "--data EMPTY",
        "--data SET --tasks nope",
        "--tasks=",
        "--keep=",
        "--pruners=",
        "--device cuda:x",
        "--cell nope",
        "--emit EMPTY",
        "--seed=-1",
        "--limit 0",
        "--recipe list.yaml",
        "--model timm:",
        "--model timm:./missing",
        "--model timm:nope@MISSING",
        "--model timm:vit",
        "--model timm:digits --tasks color",
        "--model timm:digits --match nope",
        "--pruners divprune(foo=1)",
        "--pruners dart(pivots=0)",
        "--pruners dart(pivots=x)",
        "--pruners dart(variant=nope)",
        "--pruners 'dart(variant=angelslim, official=True)'",
        "--pruners 'deep_random(first=dart, first_params={\"pivots\": 0})'",
        "--pruners deep_random(first=nope)",
        "--pruners 'uniform(keep=0.5) + fastv(layer=x, keep=4)'",
        "--pruners \"explainer(weights='MISSING')\"",
        "--cell dart(pivots=0)",
        "--import MISSING",
        "--import FILE",
        "--import BROKEN.py",
        "--import EMPTY",
        "--import not_there.methods",
        "--import 'a b'",
    ],
    "tune": [
        "--pruners nope",
        "--tasks nope",
        "--keep 2.0",
        "--by nope",
        "--data MISSING",
        "--dtype nope",
        "--model ./missing",
        "--model EMPTY",
        "--output FILE",
        "--output FILE/x",
        "--data EMPTY",
        "--data SET --tasks nope",
        "--tasks=",
        "--target 2",
        "--confidence 0",
        "--confirm 1",
        "--eta 1",
        "--on-error nope",
        "--seed=-1",
        "--pruners dart(pivots=0)",
        "--import BROKEN.py",
    ],
    "ask": [
        "--image PICTURE --question hi --pruner nope",
        "--image PICTURE --question hi --pruner dart --keep 2.0",
        "--image MISSING --question hi",
        "--image PICTURE --question=",
        "--image PICTURE --question hi --dtype nope",
        "--image PICTURE --question hi --device nope",
        "--image PICTURE --question hi --model ./missing",
        "--image PICTURE --question hi --model EMPTY",
        "--image PICTURE --question hi --model 'a b/c'",
        "--image FILE --question hi",
        "--image PICTURE --question hi --device cuda:x",
        "--image PICTURE --question hi --max-new-tokens 0",
        "--image PICTURE --question hi --pruner dart(pivots=0)",
        "--image PICTURE --question hi --pruner vtw --keep 64",
        "--image PICTURE --question hi --pruner dart",
        "--image PICTURE --question hi --import FILE",
    ],
    "show": [
        "--pruner nope --keep 0.5",
        "--pruner dart --keep 2.0",
        "--signal nope",
        "--pruner dart --keep 0.5 --image MISSING",
        "--pruner dart --keep 0.5 --dtype nope",
        "--signal predicted --weights MISSING",
        "--pruner dart --keep 0.5 --out MISSING/x.png",
        "--pruner dart --keep 0.5 --out x.jpg",
        "--pruner dart --keep 0.5 --model EMPTY",
        "--pruner dart(pivots=0) --keep 0.5",
        "--pruner dart(keep=0.5) --keep 0.5",
        "--pruner dart",
        "--pruner dart --keep 0.5 --import BROKEN.py",
    ],
    "serve": [
        "--pruner nope --keep 0.5",
        "--device nope",
        "--pruner dart --keep 2.0",
        "--dtype nope",
        "--allow nope",
        "--min-keep 2.0",
        "./missing",
        "EMPTY",
        "FILE",
        "--positions nope",
        "--port=-1",
        "--port 65536",
        "--host=",
        "--api-key=",
        "--min-keep 0.5 --max-keep 0.2",
        "--min-keep 4 --max-keep 0.2",
        "--device cuda:x",
        "--max-tokens 0",
        "--prompt-tokens 0",
        "--pictures 0",
        "--picture-megapixels 0",
        "--body-mb 0",
        "--text-chars 0",
        "--seconds 0",
        "--queue -1",
        "--pruner dart(pivots=0) --keep 0.5",
        "--allow 'dart(pivots=0)'",
        "--import BROKEN.py",
    ],
    "load-test": [
        "--target x",
        "--data MISSING",
        "--dtype nope",
        "--target 'a http://127.0.0.1:1' --data EMPTY",
        "--target 'a http://127.0.0.1:1' --output FILE",
        "--target 'a http://127.0.0.1:1' --measure-limit ./missing",
        "--target 'a http://127.0.0.1:1' --measure-limit EMPTY",
        "--target 'a http://127.0.0.1:1' --baseline nope",
        "--target 'a http://127.0.0.1:1' --concurrency x",
        "--target 'a http://127.0.0.1:1' --concurrency 0",
        "--target 'a http://127.0.0.1:1' --rounds 0",
        "--target 'a http://127.0.0.1:1' --requests 0",
        "--target 'a http://127.0.0.1:1' --block-seconds 0",
        "--target 'a http://127.0.0.1:1' --request-seconds nan",
        "--target 'a http://127.0.0.1:1' --minutes 0",
        "--target 'a http://127.0.0.1:1' --output-tokens 0",
        "--target 'a http://127.0.0.1:1' --pictures 0",
        "--target 'a http://127.0.0.1:1' --pictures 65",
        "--target 'a http://127.0.0.1:1' --video 1",
        "--target 'a http://127.0.0.1:1' --picture-side 8",
        "--target 'a http://127.0.0.1:1' --seed=-1",
        "--target 'a http://127.0.0.1:1 resize=2'",
        "--target 'a http://127.0.0.1:1 keep=7.5'",
        "--target 'a http://127.0.0.1:1 pruner=nope keep=4'",
        "--target 'a http://192.0.2.1'",
        "--targets MISSING",
        "--targets FILE",
        "--target 'a http://127.0.0.1:1 pruner=dart(pivots=0) keep=4'",
    ],
    "plan": [
        "--model bundled --keep 2.0",
        "--model bundled --pruners nope",
        "--model bundled --gpu nope",
        "--model bundled --image nope",
        "--model bundled --batch x",
        "--model bundled --dtype nope",
        "--model EMPTY",
        "--model FILE",
        "--model ./missing",
        "--model bundled --keep=",
        "--model bundled --batch 0",
        "--model bundled --processor ./missing",
        "--model bundled --text-tokens 0",
        "--model bundled --answer-tokens 0",
        "--model bundled --pruners dart(pivots=0)",
        "--model bundled --import BROKEN.py",
    ],
    "speed": [
        "--pruners nope",
        "--keep 2.0",
        "--image nope",
        "--dtype nope",
        "--data MISSING",
        "EMPTY",
        "FILE",
        "./missing",
        "--data EMPTY",
        "--rounds 2",
        "--batch 0",
        "--layers 0",
        "--tower-layers 0",
        "--compare MISSING",
        "--compare FILE",
        "--compare EMPTY",
        "--keep=",
        "--pruners=",
        "--output MISSING/x.json",
        "--seed=-1",
        "--pruners dart(pivots=0)",
        "--import BROKEN.py",
    ],
    "check": [
        "bundled --attn nope",
        "bundled --stage nope",
        "bundled --pruner nope",
        "bundled --pruner dart --keep 2.0",
        "EMPTY",
        "FILE",
        "./missing",
        "bundled --attn=",
        "bundled --part x",
        "bundled --tokens 1",
        "bundled --stage input --pruner dart",
        "bundled --pruner dart(pivots=0)",
        "bundled --pruner dart",
        "bundled --import BROKEN.py",
    ],
    "stability": [
        "--pruners nope",
        "--keep 2.0",
        "--tokens x",
        "--tokens 1",
        "--tokens=",
        "--draws 0",
        "--model EMPTY",
        "--model bundled --tokens 576",
        "--device nope",
        "--output MISSING/x.md",
        "--output EMPTY",
        "--pruners=",
        "--pruners dart(pivots=0)",
        "--import BROKEN.py",
    ],
    "compare-selections": [
        "--pruner dart --pruner nope --keep 0.5",
        "--pruner dart --pruner uniform --keep 2.0",
        "--pruner dart --pruner uniform --keep 0.5 --image MISSING",
        "--pruner dart --pruner uniform --keep 0.5 --images 0",
        "--pruner dart --pruner uniform --keep 0.5 --data EMPTY",
        "--pruner dart --pruner uniform --keep 0.5 --out MISSING/x.png",
        "--pruner dart --pruner uniform --keep 0.5 --model EMPTY",
        "--pruner dart(pivots=0) --pruner uniform --keep 0.5",
        "--pruner dart --pruner uniform --import BROKEN.py",
    ],
    "fitprune": ["--tasks nope", "--limit 0", "--model ./missing", "--data MISSING", "--output MISSING/x.json"],
    "hawk": ["--tasks nope", "--limit 0", "--model ./missing", "--data MISSING", "--output MISSING/x.json"],
    "horizon": [
        "--tasks nope",
        "--tasks gqa",
        "--search nope",
        "--limit 0",
        "--threshold 0",
        "--data MISSING",
        "--dtype nope",
        "--model ./missing",
        "--window 0",
        "--eta 0",
        "--start 0",
        "--batch-size 0",
        "--data EMPTY",
        "--data SET --tasks nope",
        "--tasks=",
        "--model EMPTY",
        "--output FILE",
        "--output FILE/x",
    ],
    "embedlens": [
        "--data MISSING",
        "--image MISSING",
        "--images 1",
        "--presence 2",
        "--sink-cosine 0.1",
        "--dtype nope",
        "--image PICTURE --classes MISSING",
        "--image PICTURE --classes EMPTY",
        "--classes MISSING",
        "--data EMPTY",
        "--dead-share nan",
        "--output MISSING/x.json",
        "--image PICTURE --out x.jpg",
        "--model EMPTY",
        "--image PICTURE --classes FILE",
        "--image PICTURE --classes LIST",
        "--image PICTURE --classes DAMAGED",
        "--image PICTURE --classes BROKEN.py",
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
        "tokenflex --weights MISSING",
        "tokenflex --output FILE",
        "tokenflex --data EMPTY",
        "tokenflex --data SET --tasks nope",
        "tokenflex --rate 0",
        "tokenflex --lm-rate nan",
        "tokenflex --counts 4,0",
        "tokenflex --counts 4 --shares=-1",
        "tokenflex --keep 0",
        "tokenflex --save-every 0",
        "explainer --output FILE",
        "explainer --batch-size 0",
        "explainer --max-new-tokens 0",
        "explainer --limit 0",
    ],
    "train-explainer": ["--data MISSING", "--dtype nope", "--tasks color,nope"],
    "export-vllm": [
        "bundled OUT --pruner nope",
        "bundled OUT --pruner dart --keep 2.0",
        "./missing OUT --pruner dart",
        "OUT --model EMPTY --pruner dart --keep 4",
        "FILE --model bundled --pruner dart --keep 4",
        "FILE/x --model bundled --pruner dart --keep 4",
        "OUT --model bundled --pruner dart --keep 4 --choice nope",
        "bundled OUT --pruner dart(pivots=0)",
        "bundled OUT --pruner dart --import BROKEN.py",
    ],
    "pruners": [
        "--import MISSING",
        "--model EMPTY",
        "--model FILE",
        "--model ./missing",
        "nope(",
        "dart(pivots=0)",
        "--import FILE",
        "--import BROKEN.py",
    ],
    "recipes": ["--nope"],
}


def cases() -> list[tuple[str, str]]:
    return [(command, text) for command, texts in BAD.items() for text in texts]


def helps() -> list[list[str]]:
    return [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)]


@cache
def results() -> list[tuple[int | None, str, str | None]]:
    """Exit code, stderr, and the heavy library that was imported, of all ``cases`` and then of all ``helps``."""
    with TemporaryDirectory() as folder:
        home = Path(folder)
        places = {name: str(home / name.lower()) for name in PLACES}
        places |= {"BUNDLED": str(bundled_data()), "SET": str(bundled_data())}
        Image.new("RGB", (28, 28)).save(home / "picture", "png")
        (home / "empty").mkdir()
        (home / "file").write_text("no JSON\n")
        (home / "list").write_text("[1]")
        one = {"kind": "sink", "ids": [1], "direction": [0.0, 0.0], "threshold": 0.5}
        (home / "damaged").write_text(
            json.dumps({"format": FORMAT, "hidden_size": 2, "vocabulary_size": 9, "classes": [one]})
        )
        (home / "broken.py").write_text("import vtc\n\nclass Mine(\n")
        pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, places)) + r")\b")
        lines = [[command, *shlex.split(pattern.sub(lambda m: places[m[0]], text))] for command, text in cases()]
        done = subprocess.run(
            [sys.executable, "-c", RUN],
            input=json.dumps(lines + helps()),
            capture_output=True,
            text=True,
            timeout=600,
            check=True,
            cwd=folder,
        )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_every_command_has_bad_inputs() -> None:
    assert sorted(BAD) == COMMANDS


@pytest.mark.parametrize(("number", "case"), enumerate(cases()), ids=[" ".join(case) for case in cases()])
def test_bad_input_is_told_before_torch_is_imported(number: int, case: tuple[str, str]) -> None:
    code, error, imported = results()[number]
    assert (code, imported) == (2, None), error
    assert error.startswith("vtc: ")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("number", range(len(helps())), ids=lambda number: " ".join(helps()[number]))
def test_help_imports_no_torch(number: int) -> None:
    assert results()[len(cases()) + number] == (0, "", None)
