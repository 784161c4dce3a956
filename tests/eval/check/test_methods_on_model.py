"""``vtc pruners --model``: what it says of each method is what wrapping a real model does."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from command_line import run
from zoo import tiny

import vtc
from vtc.eval.check.methods_on_model import REFUSED, RUNS, SUBSTITUTE, methods_on
from vtc.eval.vlm.pruning_settings import telling
from vtc.pruners import make_pruner


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "internvl", "qwen2_vl", "smolvlm"])
def test_it_says_what_wrapping_does(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    model.config.save_pretrained(tmp_path)
    found = {one.name: one for one in methods_on(str(tmp_path))}
    assert sorted(found) == vtc.list_pruners()
    for name, one in found.items():
        pruner = telling(make_pruner(name))
        # a method that runs the projector on single tokens says so at its first choice only
        refused = one.status == REFUSED and not one.why.startswith("its projector can't be run")
        told = pytest.raises((NotImplementedError, ValueError), match=re.escape(one.why) or None)
        with told if refused else nullcontext(), vtc.compressed(model, pruner):
            pass


def test_a_substitute_is_named() -> None:
    with_class_token = {one.name: one.status for one in methods_on("llava")}
    without = {one.name: one for one in methods_on("qwen2_vl", "vis*")}
    assert with_class_token["visionzip"] == RUNS
    assert without["visionzip"].status == SUBSTITUTE
    assert "the attention that a patch receives" in without["visionzip"].why


def test_a_family_without_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "pruners", "--model", "ovis2")
    assert code == 0
    assert "taken as a line of one frame" in out
    code, out, _ = run(capsys, "pruners", "cls", "--model", "ovis2", "--json")
    assert json.loads(out)[0]["status"] == REFUSED
    assert "how the patches of ovis2 become tokens" in json.loads(out)[0]["why"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("--model", "mllama"), "by cross-attention"),
        (("--model", "llama"), "takes no pictures beside text"),
        (("--model", "lama"), "Near:"),
        (("--model", "chameleon"), "no model can be built"),
        (("zzz*", "--model", "llava"), "no pruner matches"),
    ],
)
def test_what_is_refused(capsys: pytest.CaptureFixture[str], asked: tuple[str, ...], words: str) -> None:
    code, _, err = run(capsys, "pruners", *asked)
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
