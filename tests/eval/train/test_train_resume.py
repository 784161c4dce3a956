"""A run that is killed and resumed ends where an uninterrupted run ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vtc.eval.train.basics.distributed_ranks import Ranks
from vtc.eval.train.basics.loop import Place, load_checkpoint, rate_factor, run_steps, save_checkpoint
from vtc.eval.train.basics.recipe import tiny_recipe
from vtc.eval.train.pipeline import run

STAGES = ("vision", "align", "language")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Killed(Exception):
    """Stands for a kill between two steps."""


def kill_after(monkeypatch: pytest.MonkeyPatch, stage: str, steps: int) -> None:
    """Let a stage save after every step and die after some."""
    import vtc.eval.train.language.language_stage as language
    import vtc.eval.train.vision.vision_stage as vision

    def run_some(place, name, total, train_step, parts):
        def step_or_die(step):
            if name == stage and step >= steps:
                raise Killed
            return train_step(step)

        return run_steps(place, name, total, step_or_die, parts)

    monkeypatch.setattr(vision, "run_steps", run_some)
    monkeypatch.setattr(language, "run_steps", run_some)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    run(tiny_recipe(), Place(folder, Ranks(), save_seconds=0.0), export_model=False)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_run_equals_uninterrupted_run(
    stage: str, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, Ranks(), save_seconds=0.0)
    with monkeypatch.context() as patch:
        kill_after(patch, stage, 2)
        with pytest.raises(Killed):
            run(tiny_recipe(), place, export_model=False)
    assert torch.load(tmp_path / f"{stage}.pt", weights_only=True)["step"] == 2
    run(tiny_recipe(), place, export_model=False)
    for name in STAGES:
        whole = torch.load(uninterrupted / f"{name}.pt", weights_only=True)
        resumed = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert whole["step"] == resumed["step"]
        torch.testing.assert_close(resumed["parts"], whole["parts"], rtol=0, atol=0)


def test_another_seed_gives_another_model(uninterrupted: Path, tmp_path: Path) -> None:
    run(tiny_recipe(seed=1), Place(tmp_path, Ranks()), until="vision", export_model=False)
    first = torch.load(uninterrupted / "vision.pt", weights_only=True)["parts"]["clip"]
    second = torch.load(tmp_path / "vision.pt", weights_only=True)["parts"]["clip"]
    key = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(first[key], second[key])


def test_kill_while_saving_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = torch.nn.Linear(2, 2)
    path = tmp_path / "x.pt"
    save_checkpoint(path, {"part": part}, 3)

    def die(state, target) -> None:
        Path(target).write_bytes(b"half")
        raise Killed

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(Killed):
        save_checkpoint(path, {"part": part}, 4)
    assert load_checkpoint(path, {"part": part}) == 3


def test_log_has_one_row_per_interval(uninterrupted: Path) -> None:
    rows = [json.loads(line) for line in (uninterrupted / "language.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [tiny_recipe().language.steps]
    assert rows[0]["loss"] > 0


def test_rate_rises_holds_and_falls() -> None:
    factors = [rate_factor(step, 100, warmup=10, hold=0.3) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10:30] == [1.0] * 20
    assert factors[30:] == sorted(factors[30:], reverse=True)
    assert factors[-1] < 0.03
