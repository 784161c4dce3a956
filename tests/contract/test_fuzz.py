"""The fuzzer's short run; and of the fuzzer itself, that draws spread, all parameters are drawn, faults are found."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz.check import check
from fuzz.cli import main, reproducer, row_of, run, summary
from fuzz.draws import MODES, Draw, drawn
from fuzz.parameters import LEFT_OUT, TABLE
from zoo import FAMILIES

import vtc
from vtc.models.language.forward_state import Run

SEED, DRAWS = 0, 56  # four of each family


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_are_exact(family: str) -> None:
    numbers = [n for n in range(DRAWS) if drawn_family(n) == family]
    rows = [row_of(SEED, n, d, check(d)) for n, d in ((n, drawn(SEED, n)) for n in numbers)]
    wrong = [f"{reproducer(r)}: {r['why']}\n{r['what']}" for r in rows if r["status"] == "wrong"]
    assert not wrong, "\n".join(wrong)
    assert any(r["status"] == "exact" for r in rows), summary(rows)


def drawn_family(number: int) -> str:
    return tuple(FAMILIES)[number % len(FAMILIES)]


def test_the_same_number_is_the_same_draw_and_draws_spread() -> None:
    some = [drawn(3, n) for n in range(84)]
    assert [drawn(3, n) for n in range(5)] == some[:5]
    assert [drawn(4, n) for n in range(5)] != some[:5]
    assert {d.mode for d in some} == set(MODES)
    assert {d.family for d in some} == set(FAMILIES)
    assert len({name for d in some for name, _ in d.methods}) > 20
    ends = [any(isinstance(row[-1], str) for row in d.rows) for d in some]
    assert 20 < sum(ends) < 80
    assert any(all(isinstance(p, int) for row in d.rows for p in row) for d in some), "text alone"


def test_every_parameter_of_every_method_is_drawn_or_left_out_with_a_reason() -> None:
    there = {f"{n}.{f.name}" for n in vtc.list_pruners() for f in fields(vtc.pruner_class(n))}
    drawn_from = {f"{n}.{field}" for n, table in TABLE.items() for field in (*table, "keep")}
    assert there == drawn_from | LEFT_OUT.keys()
    assert not drawn_from & LEFT_OUT.keys()


GREEDY = Draw("llava", (("random", {"keep": 5, "layer": 2}),), ((3, "i0", 4), (2, "i0")), "greedy")


@pytest.mark.parametrize(
    ("fault", "mode"),
    # one sample alone, as assisted decoding takes it, needs no mask
    [("positions", mode) for mode in MODES] + [("mask", mode) for mode in MODES if mode != "assisted"],
)
def test_faults_are_found(fault: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary positions of other columns, or a key seen that is gone: both are wrong in every way to run."""
    rows = GREEDY.rows[:1] if mode == "assisted" else GREEDY.rows
    one = Draw(GREEDY.family, GREEDY.methods, rows, mode, tail=(2, "i0", 2))
    assert check(one).status == "exact"
    true = Run.drop

    def drop(self: Run, hidden: torch.Tensor, *args: Any) -> torch.Tensor:
        out = true(self, hidden, *args)
        if fault == "positions":
            self.rope_columns = self.rope_columns.roll(1, 1)
        else:
            self.slots = self.slots.flip(1)
        return out

    monkeypatch.setattr(Run, "drop", drop)
    assert check(one).status == "wrong"


def test_refusals_are_told_from_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = check(Draw("qwen2_vl", (("uniform", {"keep": 0.5}),), (("i0", 3),), positions="compact"))
    assert (refused.status, "use 'keep'" in refused.why) == ("refused", True)
    assert check(Draw("llava", (("uniform", {"keep": 0}),), (("i0", 3),))).status == "refused"

    def crash(*_: Any) -> None:
        raise ValueError("too short")

    monkeypatch.setattr(Run, "drop", crash)
    broken = check(GREEDY)
    assert broken.status == "wrong"
    assert "too short" in broken.trace


def test_the_log_is_taken_up_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "fuzz.jsonl"
    first = run(5, range(2), log)
    with log.open("a") as file:
        file.write('{"seed": 5, "dra')  # killed while writing
    again = run(5, range(3), log)
    assert again[:2] == first
    assert len(log.read_text().splitlines()) == 3
    assert main(["--seed", "5", "--draws", "3", "--log", str(log)]) == int(any(r["status"] == "wrong" for r in again))
    assert "exact by family" in capsys.readouterr().out
