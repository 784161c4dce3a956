"""A sweep's table: seeds pooled per question, random at the same budget, corrections, ranks, what the CSV holds."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from made_up_sweeps import TOKENS, MadeUp, make_sweep

from vtc.eval.statistics.cell_summary import CellSummary
from vtc.eval.statistics.significance import holm, mcnemar

METHODS = {"random": 0.0, "good": 0.12, "same": 0.0, "bad": -0.15}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    return make_sweep(tmp_path_factory.mktemp("sweep"), METHODS, images=150, keeps=(0.5, 0.1))


@pytest.fixture(scope="module")
def cells(sweep: MadeUp) -> dict[tuple[str, int | float | None], CellSummary]:
    return {(c.method, c.keep): c for c in sweep.summarise()}


def scores(sweep: MadeUp, spec: str) -> dict[str, float]:
    return {q: row["score"] for q, row in sweep.store.cell(spec).items()}


def test_seeds_are_one_line(sweep: MadeUp, cells: dict[tuple[str, int | float | None], CellSummary]):
    assert len(cells) == 1 + 4 * 2
    random = cells["random", 0.1]
    assert (random.n, random.complete, random.seeds) == (600, True, (0, 1, 2))
    assert random.label == "random 10% (3 seeds)"
    runs = [scores(sweep, spec) for spec in random.specs]
    assert len({tuple(run.values()) for run in runs}) == 3
    assert random.mean.value == pytest.approx(fmean(fmean(run.values()) for run in runs))
    base = scores(sweep, "unpruned")
    assert random.flips_down == pytest.approx(fmean(fmean(run[q] < base[q] for q in base) for run in runs))
    assert random.p_mcnemar is None  # of several seeds
    assert random.verdict == random.against == ""


def test_differences_to_random_are_paired_with_its_seeds(sweep: MadeUp, cells):
    good, random = cells["good", 0.1], cells["random", 0.1]
    mine, runs = scores(sweep, good.spec), [scores(sweep, spec) for spec in random.specs]
    by_task = {t: [mine[q] - fmean(r[q] for r in runs) for q in mine if f"-{t}-" in q] for t in sweep.tasks.tasks}
    assert good.against_random.value == pytest.approx(fmean(fmean(v) for v in by_task.values()))
    assert good.against_random.low < good.against_random.value < good.against_random.high
    assert good.against == "random 10% (3 seeds), 58 tokens per layer to 58"


def test_flips_and_their_test(sweep: MadeUp, cells):
    base, bad = scores(sweep, "unpruned"), cells["bad", 0.5]
    mine = scores(sweep, bad.spec)
    down, up = (sum(op(mine[q], base[q]) for q in base) for op in (float.__lt__, float.__gt__))
    assert (bad.flips_down, bad.flips_up) == (down / 600, up / 600)
    assert bad.flips == pytest.approx((down + up) / 600)
    assert bad.p_mcnemar == mcnemar(down, up)


def test_verdicts_and_corrections(cells):
    compared = [c for c in cells.values() if c.method in ("good", "same", "bad")]
    assert [c.p_holm for c in compared] == pytest.approx(holm([c.p_value for c in compared]))
    assert [c.p_mcnemar_holm for c in compared] == pytest.approx(holm([c.p_mcnemar for c in compared]))
    assert {cells["good", k].verdict for k in (0.5, 0.1)} == {"better than random"}
    assert {cells["bad", k].verdict for k in (0.5, 0.1)} == {"worse than random"}
    for keep in (0.5, 0.1):
        same = cells["same", keep]
        assert same.verdict == f"no evidence, needs n >= {same.needed} for 2 points"
        assert same.detectable > 0.02
        assert same.needed > same.n


def test_ranks(cells):
    ranks = {m: cells[m, 0.1].rank for m in METHODS}
    assert (ranks["good"], ranks["bad"]) == ((1, 1, 1), (4, 4, 4))
    assert sorted((ranks["random"].value, ranks["same"].value)) == [2, 3]
    assert (ranks["same"].low, ranks["same"].high) == (2, 3)
    assert cells["good", 0.1].ranked == 4
    assert cells["unpruned", None].rank is None


def test_only_the_same_measured_budget_is_compared(tmp_path: Path):
    # 8 of 32 layers keep all: 10% costs 32.5% of the tokens per layer, 25% costs 43.75%
    sweep = make_sweep(tmp_path, {"random": 0, "late": 0.1}, keeps=(0.44, 0.25, 0.1), layers={"late": 8})
    cells = {(c.method, c.keep): c for c in sweep.summarise()}
    late = cells["late", 0.25]
    assert late.tokens_per_layer == pytest.approx((8 * TOKENS + 24 * 144) / 32)
    assert late.against == "random 44% (3 seeds), 253 tokens per layer to 252"
    assert late.against_ratio == pytest.approx(252 / 253)
    assert late.p_value is not None
    lone = cells["late", 0.1]
    assert lone.verdict == "no random at this budget, the nearest is random 25% (3 seeds)"
    assert (lone.p_value, lone.p_holm, lone.against_random) == (None, None, None)
    assert late.p_holm == late.p_value  # the only one that was compared
    matched = {(c.method, c.keep): c for c in sweep.summarise(match="mean-tokens")}
    assert matched["late", 0.25].rank is not None
    assert matched["late", 0.1].rank is None  # 30% off the nearest budget


def test_the_size_of_a_difference_to_tell_is_an_option(sweep: MadeUp):
    wide = {c.label: c for c in sweep.summarise(margin=0.2)}
    assert wide["same 50%"].verdict == "no evidence"
    assert wide["same 50%"].needed < 600


def test_graded_metrics(tmp_path: Path):
    sweep = make_sweep(tmp_path, METHODS, images=100, keeps=(0.25,), tasks=("vqa", "anls"), graded=("vqa", "anls"))
    cells = {c.method: c for c in sweep.summarise()}
    assert {row["score"] for row in sweep.rows} - {0.0, 1.0}
    assert cells["good"].verdict == "better than random"
    assert 0 < cells["good"].flips_down < 1
    assert cells["same"].verdict.startswith("no evidence")


def test_unfinished_sweeps_compare_what_both_have(tmp_path: Path):
    sweep = make_sweep(tmp_path, {"random": 0, "good": 0.1, "late": 0.1}, keeps=(0.25,), unfinished=("late",))
    cells = {c.method: c for c in sweep.summarise()}
    late = cells["late"]
    assert (late.n, late.complete, cells["good"].complete) == (80, False, True)
    base, mine = scores(sweep, "unpruned"), scores(sweep, late.spec)
    assert late.difference.value == pytest.approx(
        np.mean([np.mean([mine[q] - base[q] for q in mine if f"-{t}-" in q]) for t in sweep.tasks.tasks])
    )
    assert late.verdict


def test_without_random_there_is_no_verdict(tmp_path: Path):
    cells = make_sweep(tmp_path, {"good": 0.1}, keeps=(0.25,)).summarise()
    assert [(c.verdict, c.p_value, c.against) for c in cells] == [("", None, ""), ("", None, "")]
    assert cells[1].p_mcnemar is not None


def test_one_row_of_the_csv(cells):
    row = cells["good", 0.1].flat()
    assert (row["verdict"], row["seeds"], row["p_holm"]) == ("better than random", 0, cells["good", 0.1].p_holm)
    assert row["random_difference_low"] == cells["good", 0.1].against_random.low
    assert row["pope_accuracy"] == cells["good", 0.1].accuracy["pope"]
    plain = cells["unpruned", None].flat()
    assert (plain["difference"], plain["random_difference"], plain["rank"], plain["keep"]) == (0.0, "", "", "")
