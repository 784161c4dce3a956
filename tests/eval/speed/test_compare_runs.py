"""An older run: what became slower is flagged, noise is not, other things are not compared."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vtc.eval.speed.compare_runs import compare_runs, not_compared
from vtc.eval.speed.older_run import FORMAT, older_run
from vtc.eval.speed.result_file import refuse_other

MEDIANS = {"prefill": 0.3, "tower": 0.1, "selection": 0.01, "decode": 0.01}
ABOUT = {
    "identity": "a", "layers": {"decoder": [4, 32]}, "image": "640x480", "batch": 1, "dtype": "float32", "clock": "CPU",
    "device": "cpu", "cpu": "x", "gpu": None, "threads": 1, "prompt": [600, 576], "software": {"vtc": "1"},
}  # fmt: skip


def run(seed: int, noise: float = 0.03, machine: float = 1.0, rounds: int = 7, **slower: float) -> dict[str, Any]:
    """Made-up rounds of two settings; `slower` multiplies parts of the pruned one."""
    rng = np.random.default_rng(seed)

    def row(spec: str, scale: dict[str, float]) -> dict[str, Any]:
        times = {
            part: (machine * m * scale.get(part, 1.0) * rng.lognormal(0, noise, rounds)).tolist()
            for part, m in MEDIANS.items()
            if spec != "unpruned" or part != "selection"
        }
        return {"spec": spec, "rounds": times, "kv_bytes": 1000, "peak_memory": 10**6}

    rows = [row("unpruned", {}), row("dart(keep=64)", slower)]
    return {"vtc_speed": FORMAT, "about": ABOUT, "rows": rows}


@pytest.mark.parametrize("part", MEDIANS)
def test_what_became_slower_is_flagged(part: str):
    changes = compare_runs(run(0), run(1, **{part: 1.3}))
    assert [(c.spec, c.what) for c in changes if c.regression] == [("dart(keep=64)", part)]


def test_noise_is_not_flagged():
    flagged = [c for seed in range(200) for c in compare_runs(run(2 * seed), run(2 * seed + 1)) if c.regression]
    assert len(flagged) <= 4, "of 1,400 times, under one in 300"


def test_a_slower_machine_is_seen_on_the_unpruned_model_alone():
    changes = compare_runs(run(0), run(1, machine=1.5))
    assert {c.spec for c in changes if c.regression} == {"unpruned"}
    assert {c.what for c in changes if c.regression} == {"prefill", "tower", "decode"}


def test_faster_is_said_and_no_regression():
    changes = compare_runs(run(0, selection=2.0), run(1))
    assert [(c.what, c.verdict) for c in changes if c.verdict == "faster"] == [("selection", "faster")]
    assert not any(c.regression for c in changes)


def test_choosing_that_takes_a_little_longer_is_no_regression():
    """Twice as long, but a thousandth of the prefill."""
    old, new = run(0), run(1)
    for content, factor in ((old, 0.03), (new, 0.06)):
        times = content["rows"][1]["rounds"]
        times["selection"] = [factor * t for t in times["selection"]]
    assert not any(c.regression for c in compare_runs(old, new))


def test_more_bytes_are_flagged():
    old, new = run(0), run(0)
    new["rows"][1]["kv_bytes"] = 1010
    assert [c.what for c in compare_runs(old, new) if c.regression] == ["KV cache"]
    new = run(0)
    new["rows"][1]["peak_memory"] *= 2
    assert [c.what for c in compare_runs(old, new) if c.regression] == ["peak of memory"]


def test_settings_of_one_run_only_are_named():
    old, new = run(0), run(0)
    new["rows"][1]["spec"] = "fastv(keep=64)"
    assert not_compared(old, new) == ["dart(keep=64)", "fastv(keep=64)"]
    assert {c.spec for c in compare_runs(old, new)} == {"unpruned"}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("identity", "b", "model: a then, b now"),
        ("batch", 8, "batch: 1 then, 8 now"),
        ("image", "1280x960", "picture: 640x480 then, 1280x960 now"),
        ("gpu", "H200", "GPU: none then, H200 now"),
        ("layers", {"decoder": [8, 32]}, "layers measured: 4 of 32 decoder then, 8 of 32 decoder now"),
        ("cpu", "y", "processor: x then, y now"),
        ("threads", 2, "number of threads: 1 then, 2 now"),
    ],
)
def test_other_things_are_not_compared(name: str, value: Any, words: str):
    refuse_other(ABOUT, {**ABOUT, "software": {"vtc": "2"}})
    with pytest.raises(ValueError, match=words):
        refuse_other(ABOUT, {**ABOUT, name: value})


def test_what_is_no_older_run(tmp_path: Path):
    def written(content: str) -> Path:
        (tmp_path / "old.json").write_text(content)
        return tmp_path / "old.json"

    with pytest.raises(ValueError, match=r"can't read .*No such file"):
        older_run(tmp_path / "none.json")
    with pytest.raises(ValueError, match="is no JSON"):
        older_run(written("{"))
    with pytest.raises(ValueError, match="was not written by vtc speed"):
        older_run(written("[]"))
    other = copy.deepcopy(run(0))
    other["vtc_speed"] = 99
    with pytest.raises(ValueError, match="format 99, this vtc reads 1"):
        older_run(written(json.dumps(other)))
