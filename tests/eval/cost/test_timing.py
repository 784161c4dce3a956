"""Timings: all cells in turns, the first turn unmeasured, the device waited for; what the figures are made of."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_world import world
from versions import TAKES_FEATURES

from vtc.eval.cost import interleaved_timing as timing
from vtc.eval.cost import timed_prompt
from vtc.eval.cost.clocks import clock
from vtc.eval.cost.prefill_cost import Spread
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.prompts import make_row
from vtc.eval.vlm.pruning_settings import UNPRUNED, make_cell

CELLS = [UNPRUNED, *(make_cell(m, 3) for m in ("random", "uniform", "pool", "fastv"))]


@pytest.fixture(scope="module")
def prompt() -> tuple[Any, Any]:
    model, data = world()
    loaded, tasks = load_model(str(model)), load_tasks(data)
    question = tasks.questions[0]
    return loaded.model, make_row(loaded.processor, loaded.model.config, tasks.visuals(question), question)


def test_cells_take_turns_and_the_first_turn_is_not_measured(prompt: Any, monkeypatch: pytest.MonkeyPatch):
    visits: list[str] = []
    now = itertools.count()

    def read(self: Any, cell: Any) -> dict[str, float]:
        visits.append(cell.spec)
        return {"prefill": float(next(now))}

    monkeypatch.setattr(timed_prompt.TimedPrompt, "read", read)
    ticks: list[None] = []
    found = timing.measure_costs(*prompt[:1], CELLS, prompt[1], 4, ticks.append)
    n = len(CELLS)
    turns = [visits[i : i + n] for i in range(0, len(visits), n)]
    assert len(turns) == 5
    assert [ticks.count(step) for step in (timing.TIMING, timing.PEAKS)] == [len(visits), n]
    assert timing.steps_of(CELLS, 4) == {timing.TIMING: len(visits), timing.PEAKS: n}
    assert all(sorted(turn) == sorted(c.spec for c in CELLS) for turn in turns)
    followers = {spec: {t[t.index(spec) - 1] for t in turns if t.index(spec)} for spec in turns[0]}
    assert all(len(before) > 1 for before in followers.values()), "nobody always follows the same one"
    for cell in CELLS:
        readings = [t * n + turn.index(cell.spec) for t, turn in enumerate(turns)][1:]
        cost = found[cell.spec]
        assert cost.prefill == Spread(float(np.median(readings)), min(readings), max(readings))
        assert cost.repeats == 4
    times = timing.prefill_times(found)
    assert times[UNPRUNED.spec].ratio == 1
    assert times["pool(keep=3)"].ratio == found["pool(keep=3)"].prefill.median / found[UNPRUNED.spec].prefill.median


def test_the_device_is_waited_for_before_and_after(monkeypatch: pytest.MonkeyPatch):
    happened: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", happened.append)
    device = torch.device("cuda", 1)
    seconds, given = clock(device, lambda: happened.append("work") or 7)
    assert happened == [device, "work", device]
    assert given == 7
    assert seconds > 0
    clock(torch.device("cpu"), lambda: None)
    assert len(happened) == 3


def test_every_part_is_read(prompt: Any):
    found = timing.measure_costs(prompt[0], CELLS, prompt[1], 1)
    for cell in CELLS:
        cost = found[cell.spec]
        parts = {"vision", "lm_prefill", "prefill", "decode"} | ({"selection"} if cell is not UNPRUNED else set())
        parts -= set() if TAKES_FEATURES else {"vision", "lm_prefill"}
        for part in parts:
            assert getattr(cost, part).low > 0, (cell.spec, part)
        assert (cost.selection is None) == (cell is UNPRUNED)
    assert not hasattr(prompt[0], "vtc"), "the model is as it was"


def test_peak_memory_is_of_the_run_itself(prompt: Any, tmp_path: Path):
    if not timed_prompt.reset_peak():
        pytest.skip("this system can't reset the peak of resident memory")
    before = timed_prompt.peak_resident()
    held = np.ones(200 << 20, dtype=np.uint8)
    assert timed_prompt.peak_resident() > before + (150 << 20)
    del held
    peak, of = timed_prompt.TimedPrompt(prompt[0], prompt[1]).memory(CELLS[1])
    assert peak < before + (100 << 20), "the array is gone"
    assert of == "resident process"
    assert not timed_prompt.reset_peak(tmp_path / "no" / "such file")
