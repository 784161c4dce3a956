"""The tables on the screen: verdicts in words, nothing wider than the screen, and what the numbers don't say."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_sweeps import METHODS, make_sweep
from rich.console import Console

from vtc.eval.cost.prefill_cost import Spread
from vtc.eval.reports.screen_table_notes import cost_caption, unparsed, unreached
from vtc.eval.reports.screen_tables import print_tables
from vtc.eval.statistics.cell_summary import CellSummary

Shown = Callable[..., str]
TASKS = ("pope", "gqa", "textvqa", "scienceqa_img", "mmbench_en", "realworldqa", "ocrbench", "chartqa")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[CellSummary]]:
    sweep = make_sweep(
        tmp_path_factory.mktemp("made"), {**METHODS, "random(layer=2)": 0.0}, tasks=TASKS, images=40,
        layers={"random(layer=2)": 2}, unfinished=["bad"],
    )  # fmt: skip
    return sweep, sweep.summarise()


def shown(sweep: Any, cells: list[CellSummary], width: int, match: str = "keep") -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    print_tables(console, cells, sweep.tasks, match)
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.parametrize("width", [80, 120, 160])
def test_nothing_is_wider_than_the_screen_or_cut(width: int, made: tuple[Any, list[CellSummary]]):
    sweep, cells = made
    lines = shown(sweep, cells, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    for task in TASKS:
        assert text.count(task) == 1, "every task has one column"
    for cell in cells:
        assert cell.method in text, "names are whole"
    by_task = [line for line in lines if line.startswith("Accuracy by task")]
    assert len(by_task) == (2 if width == 80 else 1)


def test_verdicts_are_in_words_and_stand_beside_their_difference(made: tuple[Any, list[CellSummary]]):
    sweep, cells = made
    lines = shown(sweep, cells, 160)
    text = "\n".join(lines)
    for cell in cells:
        start = [cell.method] if cell.keep is None else [cell.method, f"{100 * cell.keep:g}%"]
        line = next(x for x in lines if x.split()[: len(start)] == start)
        assert f"{100 * cell.mean.value:.1f}" in line
        if cell.is_unpruned or cell.is_random:
            assert line.endswith("reference" if cell.is_unpruned else "baseline")
        else:
            assert cell.verdict.removesuffix(" for 2 points") in line
            assert f"{100 * cell.against_random.low:+.1f}".replace("-", "−") in line
        if cell.method == "bad":
            assert f"unfinished: {cell.n} of {len(sweep.tasks.questions)}" in line
    assert any("better than random" in line for line in lines)
    assert "random is the mean of 3 seeds" in text
    assert ("n is the number of questions that 2 points need" in " ".join(text.split())) == ("needs n" in text)


def test_what_was_not_measured_has_no_column(tmp_path: Path):
    sweep = make_sweep(tmp_path, {"random": 0.0}, timing=False, flops=False, images=10)
    text = "\n".join(shown(sweep, sweep.summarise(), 120))
    assert "kept" in text
    for head in ("FLOPs", "bytes", "time"):
        assert head not in text


def test_the_caption_tells_what_ratios_are_of_and_when_times_are_rough(made: tuple[Any, list[CellSummary]]):
    _, cells = made
    base = next(c for c in cells if c.is_unpruned)
    said = cost_caption(cells)
    assert f"{1000 * base.cost.prefill.median:.0f} ms to the first token" in said
    assert "medians of 5 turns" in said
    assert "rough" not in said
    busy = [replace(c, cost=replace(c.cost, prefill=Spread(0.1, 0.08, 0.2))) if c.cost else c for c in cells]
    timed = sum(c.cost is not None for c in cells)
    assert f"They are rough: in {timed} of {timed} lines" in cost_caption(busy)
    assert cost_caption([]) == ""


def test_budgets_that_a_method_can_not_reach_are_told(tmp_path: Path):
    sweep = make_sweep(tmp_path, {"random": 0.0, "late": 0.1}, layers={"late": 16}, images=20)
    cells = sweep.summarise(match="mean-tokens")
    said = "\n".join(shown(sweep, cells, 120, "mean-tokens"))
    assert "% of the tokens per layer: late can't reach it: nearest is" in said
    assert list(unreached(cells, "keep")) == []


def test_answers_that_do_not_parse_are_counted(made: tuple[Any, list[CellSummary]]):
    sweep, cells = made
    plain = [replace(c, official={}) for c in cells]
    assert list(unparsed(plain, sweep.tasks)) == []
    n = sweep.tasks.counts["pope"]
    odd = [replace(plain[0], official={"pope": {"accuracy": 0.5, "unparsed": 3 / n}}), *plain[1:]]
    (said,) = unparsed(odd, sweep.tasks)
    assert f"of {len(sweep.tasks.questions)}: unpruned 3;" in said
    assert '"parsed": ""' in said
