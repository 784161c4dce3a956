"""benchmarks/selection runs, and its plain transcriptions choose what the package chooses."""

from __future__ import annotations

import json
import subprocess
import sys

from places import ROOT

SHAPES = "--tokens 48,96 --width 256 --batch 2 --dtype float32 --look noise,picture --turns 2"


def test_every_transcription_agrees_and_the_file_has_the_table(tmp_path):
    folder, output = ROOT / "benchmarks" / "selection", tmp_path / "found.json"
    command = [sys.executable, str(folder / "run.py"), *SHAPES.split(), "--output", str(output)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(output.read_text())
    names = {line["method"] for line in found["lines"]}
    assert len(names) == len(list((folder / "transcriptions").glob("[!_]*.py")))
    assert len(found["lines"]) == 4 * len(names)
    assert {e["method"] for e in found["exponents"]} == names
    for line in found["lines"]:
        assert line["method"] in printed
        assert line["same"] >= 0.99, line
        assert line["ours_seconds"] > 0 < line["ours_memory"]
        low, high = line["ratio_interval"]
        assert low <= line["ratio"] <= high
