"""``vtc train tokenflex``: what learns, what a batch is, a resumed run and two processes give the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_world import world
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer

import vtc
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.train.compressor.answered_questions import IGNORED, Collator, Questions
from vtc.eval.train.compressor.live_network import NETWORK, counts_of, training
from vtc.eval.train.compressor.options import CompressorOptions, check_options
from vtc.eval.train.compressor.train_job import run_training
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.prompts import make_row
from vtc.pruners.method_modules import TRAINED
from vtc.pruners.registry import list_pruners, pruner_class
from vtc.pruners.tokenflex import TokenFLEX
from vtc.pruners.trained.compressor import TrainedCompressor

QUIET = Console(quiet=True)


def options(output: Path | None = None, **more: Any) -> CompressorOptions:
    model, data = world()
    given = {"counts": [4, 9], "steps": 4, "batch_size": 2, "save_every": 2, "device": "cpu", "lm_rate": 1e-3}
    return CompressorOptions("tokenflex", str(model), data, output=output, **{**given, **more})


def saved(folder: Path) -> dict[str, torch.Tensor]:
    found = load_file(folder / "compressor.safetensors")
    return {**found, **(load_file(folder / "model.safetensors") if (folder / "model.safetensors").exists() else {})}


def test_trained_methods_are_those_of_the_registry() -> None:
    assert sorted(TRAINED) == [n for n in list_pruners() if issubclass(pruner_class(n), TrainedCompressor)]


def test_a_batch_ends_with_its_answers_and_only_they_count() -> None:
    model, data = world()
    loaded, tasks = load_model(str(model), "cpu"), load_tasks(data)
    collator, tokenizer = Collator(loaded.processor, tasks), loaded.processor.tokenizer
    questions = [tasks.questions[i] for i in (0, 2, 5)]
    batch = collator(questions)
    for row, question in enumerate(questions):
        counted = batch["labels"][row] != IGNORED
        assert tokenizer.decode(batch["labels"][row][counted]).strip() == f"{question.answer}</s>"
        assert torch.equal(batch["labels"][row][counted], batch["input_ids"][row][counted])
        asked = make_row(loaded.processor, loaded.model.config, tasks.visuals(question), question).ids
        shown = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert torch.equal(shown[: len(asked)], asked), "the prompt is the one that is answered"
    with torch.no_grad():
        vtc.compress(loaded.model, "tokenflex", keep=4, weights="untrained")
        out = loaded.model(**batch)
    assert out.logits.shape[:2] == batch["labels"].shape
    shifted = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert torch.allclose(out.loss, shifted, atol=1e-5)


def test_a_method_that_reads_the_question_reads_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    select = TokenFLEX.select

    def spy(self: TokenFLEX, tokens: vtc.VisualTokens, k: int) -> Any:
        read.extend(tokens.questions())
        return select(self, tokens, k)

    monkeypatch.setattr(TokenFLEX, "uses_question", True)
    monkeypatch.setattr(TokenFLEX, "select", spy)
    run_training(options(tmp_path, stage="align", steps=3), QUIET)
    tokenizer = AutoTokenizer.from_pretrained(world()[0])  # a small one, that does not know all words
    asked = {
        tokenizer.decode(tokenizer(q.question)["input_ids"], skip_special_tokens=True).strip()
        for q in load_tasks(world()[1]).questions
    }
    assert len(read) == 1 + 3 * 2
    assert {text.removesuffix("ASSISTANT:").strip() for text in read} <= asked


def test_counts_are_drawn_by_the_step_alone() -> None:
    asked = options(counts=[4, 9], shares=[0.25, 0.75])
    model, data = world()
    loaded = load_model(str(model), "cpu")
    collator = Collator(loaded.processor, load_tasks(data))
    batch = collator([Questions(load_tasks(data))[0]])
    with training(loaded.model, asked, batch) as subject:
        drawn = [subject.count_at(step) for step in range(400)]
        assert drawn == [subject.count_at(step) for step in range(400)]
        assert 0.65 < drawn.count(9) / 400 < 0.85
        for count in (4, 9, 4):
            subject.keep(count)
            loaded.model(**batch)
            assert loaded.model.vtc.report.tokens_kept == count
            assert subject.pruner.built is subject.network
        assert NETWORK in dict(loaded.model.named_modules())
    assert NETWORK not in dict(loaded.model.named_modules())
    assert counts_of(CompressorOptions("tokenflex")) == ((64, 0.2), (144, 0.3), (256, 0.5))


@pytest.mark.parametrize(
    ("more", "changed"),
    [
        ({}, {"compressor", "projector", "language"}),
        ({"train": ["compressor", "projector"]}, {"compressor", "projector"}),
        ({"train": ["lm"], "bf16": True, "checkpointing": True, "accumulate": 2}, {"language"}),
    ],
    ids=lambda given: str(sorted(given)),
)
def test_what_is_named_learns_and_the_tower_never_does(more: Any, changed: set[str], tmp_path: Path) -> None:
    model, _ = world()
    run_training(options(tmp_path, **more), QUIET)
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys(), "a stock checkpoint"
    moved = {name for name, x in after.items() if not torch.equal(x.float(), before[name].float())}
    network = load_file(tmp_path / "compressor.safetensors")
    found = {"compressor"} if network["out.weight"].any() else set()
    found |= {"projector"} if any("projector" in n for n in moved) else set()
    found |= {"language"} if any("language" in n or "lm_head" in n for n in moved) else set()
    assert found == changed
    assert not any("vision_tower" in name for name in moved)
    again = vtc.load(tmp_path, keep=9)
    assert [p.name for p in again.vtc.pipeline] == ["tokenflex"]


def test_what_a_run_leaves(tmp_path: Path) -> None:
    run_training(options(tmp_path, stage="align", arguments=["train", "tokenflex"]), QUIET)
    assert not (tmp_path / "model.safetensors").exists(), "the model is as it was"
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["step"] for row in report["history"]] == [1, 2, 3, 4]
    assert report["tokens"] == {"4": 0.5, "9": 0.5}
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert "Made by `vtc train tokenflex`" in (tmp_path / "README.md").read_text()
    with safe_open(tmp_path / "compressor.safetensors", "pt") as file:
        assert file.metadata()["seed"] == "0"
    model = vtc.load(world()[0], "tokenflex", keep=9, params={"weights": str(tmp_path)})
    assert model.vtc.pipeline[0].network(None).out.weight.any()
    other = options(tmp_path / "other", stage="align", weights=str(tmp_path), steps=1, seed=3)
    run_training(other, QUIET)  # goes on from it


def test_loss_falls(tmp_path: Path) -> None:
    run_training(options(tmp_path, steps=40, batch_size=6, rate=3e-3, lm_rate=3e-3, save_every=100), QUIET)
    losses = [row["loss"] for row in json.loads((tmp_path / "report.json").read_text())["history"]]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_a_resumed_run_is_the_whole_run(tmp_path: Path) -> None:
    run_training(options(tmp_path / "whole", steps=6), QUIET)
    with pytest.raises(KeyboardInterrupt):
        run_training(options(tmp_path / "parts", steps=6, stop_after=4), QUIET)
    assert not (tmp_path / "parts" / "report.json").exists()
    run_training(options(tmp_path / "parts", steps=6), QUIET)
    whole, parts = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    histories = [json.loads((tmp_path / n / "report.json").read_text())["history"] for n in ("whole", "parts")]
    assert [row["step"] for row in histories[1]] == [1, 2, 3, 4, 5, 6]
    assert histories[0] == histories[1]


def test_an_adapter_is_saved_with_the_network(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    run_training(options(tmp_path, train=["compressor", "lora"], stop_after=None), QUIET)
    assert {"adapter_config.json", "vtc_config.json", "compressor.safetensors"} <= {p.name for p in tmp_path.iterdir()}
    assert not (tmp_path / "model.safetensors").exists()
    model = vtc.load(tmp_path, keep=4)
    assert any("lora_" in name for name, _ in model.named_parameters())
    with pytest.raises(KeyboardInterrupt):
        run_training(options(tmp_path / "parts", train=["compressor", "lora"], stop_after=2), QUIET)
    run_training(options(tmp_path / "parts", train=["compressor", "lora"]), QUIET)
    for name in ("adapter_model.safetensors", "compressor.safetensors"):
        whole, parts = load_file(tmp_path / name), load_file(tmp_path / "parts" / name)
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.share(3)
@pytest.mark.parametrize("method", ["tokenflex", "focusllava", "pmod"])
def test_two_processes_take_the_steps_of_one_with_twice_the_batches(method: str, tmp_path: Path) -> None:
    model, data = world()
    command = ["train", method, "--model", model, "--data", data, "--output", tmp_path / "two", "--steps", "3",
               "--batch-size", "2", "--lm-rate", "0.001", "--device", "cpu"]  # fmt: skip
    counts = None if method == "pmod" else [4, 9]
    command += ["--counts", "4,9"] if counts else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "vtc", *map(str, command)], capture_output=True, text=True, timeout=900, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "two" / "report.json").read_text())["processes"] == 2
    run_training(replace(options(tmp_path / "one", steps=3, accumulate=2, counts=counts), method=method), QUIET)
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two")
    start = load_file(model / "model.safetensors")
    assert any(not torch.equal(one[name].float(), start[name].float()) for name in start)
    assert all(torch.allclose(one[name].float(), two[name].float(), atol=2e-4) for name in one)


def test_counts_that_leave_nothing_to_do_are_told(tmp_path: Path) -> None:
    words = r"--counts or --keep 1000: a picture of the first question has \d+ visual tokens"
    for counts in ((1000,), (4, 1000)):
        with pytest.raises(ValueError, match=words):
            run_training(options(tmp_path / "x", counts=counts, shares=None), QUIET)


def test_wrong_options_are_told() -> None:
    with pytest.raises(ValueError, match="'dart' has no network to train"):
        check_options(CompressorOptions("dart"))
    with pytest.raises(ValueError, match="the bundled evaluation set"):
        run_training(CompressorOptions("tokenflex", tasks=["color"]), QUIET)
