"""``vtc train focusllava``: both samplers learn, at two stages of one forward; a resumed run is the whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bench_world import world
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

import vtc
from vtc.eval.train.compressor.live_network import counts_of
from vtc.eval.train.compressor.options import CompressorOptions
from vtc.eval.train.compressor.train_job import run_training
from vtc.pruners.focusllava import FocusLLaVA

QUIET = Console(quiet=True)
LAST = ("scales.weight", "scales.bias", "question.weight")  # what begins at zero


def options(output: Path, **more: Any) -> CompressorOptions:
    model, data = world()
    given = {"counts": [3, 5], "steps": 4, "batch_size": 2, "save_every": 2, "device": "cpu", "lm_rate": 1e-3}
    return CompressorOptions("focusllava", str(model), data, output=output, **{**given, **more})


@pytest.mark.parametrize("more", [{"checkpointing": True}, {"train": ["compressor", "lora"]}], ids=["lm", "lora"])
def test_both_samplers_learn_and_a_resumed_run_is_the_whole_run(more: Any, tmp_path: Path) -> None:
    if "train" in more:
        pytest.importorskip("peft")
    run_training(options(tmp_path / "whole", **more), QUIET)
    with pytest.raises(KeyboardInterrupt):
        run_training(options(tmp_path / "parts", stop_after=2, **more), QUIET)
    run_training(options(tmp_path / "parts", **more), QUIET)
    files = {p.name for p in (tmp_path / "whole").glob("*.safetensors")}
    assert files == {"compressor.safetensors", "adapter_model.safetensors" if "train" in more else "model.safetensors"}
    for name in files:
        whole, parts = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    network = load_file(tmp_path / "whole" / "compressor.safetensors")
    assert all(network[name].any() for name in LAST), "both samplers learnt"
    with safe_open(tmp_path / "whole" / "compressor.safetensors", "pt") as file:
        assert file.metadata()["format"] == "vtc-focusllava-1"
    again = vtc.load(tmp_path / "whole", keep=3)
    assert [(p.name, p.keep) for p in again.vtc.pipeline] == [("focusllava", 3)]


def test_counts_and_the_samplers_alone(tmp_path: Path) -> None:
    assert counts_of(CompressorOptions("focusllava")) == FocusLLaVA.training_counts
    run_training(options(tmp_path, stage="align", steps=2), QUIET)
    assert not (tmp_path / "model.safetensors").exists(), "the model is as it was"
    network = load_file(tmp_path / "compressor.safetensors")
    assert all(network[name].any() for name in LAST)
    for params in ({}, {"vision": False}, {"text": False}):
        model = vtc.load(world()[0], "focusllava", keep=3, params={"weights": str(tmp_path), **params})
        assert model.vtc.pipeline[0].check_files() is None
